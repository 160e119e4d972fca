"""Device strings, the figures, and that their errors teach."""

import pytest

from jaxdl.compiled import cards
from jaxdl.errors import UserError


@pytest.mark.parametrize(
    ('text', 'name', 'gpus', 'hosts'),
    [
        ('h100x8', 'h100', 8, 1),
        ('H100x8x2', 'h100', 8, 2),
        ('h100', 'h100', 1, 1),
        ('a100-40x4', 'a100-40', 4, 1),
        ('a100x4', 'a100-80', 4, 1),
        ('v100-32x8x4', 'v100-32', 8, 4),
        ('rtx4090x2', 'rtx4090', 2, 1),
        ('rtx4090', 'rtx4090', 1, 1),
        ('gtx1080x3x2', 'gtx1080', 3, 2),
        ('b200x8', 'b200', 8, 1),
    ],
)
def test_device_strings(text, name, gpus, hosts):
    cluster = cards.parse(text)
    assert (cluster.card.name, cluster.gpus_per_host, cluster.hosts) == (name, gpus, hosts)
    assert cluster.devices == gpus * hosts
    assert cluster.topology == f'1x{hosts}x{gpus}'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('h10x8', ("'h10'", 'known: v100-16', "did you mean 'h100'")),
        ('h100x0', ('h100x0', 'CARDxGPUSxHOSTS')),
        ('h100x8x2x2', ('CARDxGPUSxHOSTS',)),
        ('h100xeight', ('h100xeight', 'e.g. h100x8')),
        ('', ('CARDxGPUSxHOSTS',)),
        ('h100 x 8', ('CARDxGPUSxHOSTS',)),
    ],
)
def test_wrong_device_strings_teach(text, words):
    with pytest.raises(UserError) as error:
        cards.parse(text)
    for word in words:
        assert word in str(error.value)


def test_links():
    cluster = cards.parse('h100x8x2')
    assert cluster.host_link == ('NVLink', 450e9)
    assert cluster.network_link == ('network', 50e9)
    assert cards.parse('h100x8x2', network=100e9).network_link == ('network', 12.5e9)
    assert cards.parse('h100x1x2').network_link == ('network', 50e9)
    assert cards.parse('rtx4090x2').host_link == ('PCIe', 31.5e9)
    with pytest.raises(UserError, match='network'):
        cards.parse('h100x8x2', network=0.0)


@pytest.mark.parametrize('card', cards.cards().values(), ids=lambda card: card.name)
def test_every_card_is_complete_and_plausible(card):
    assert card.sources and card.kinds
    gigabytes = int(card.title.split()[-2])
    # What the driver reports lies a few per cent around the name's figure.
    assert 0.98 < card.memory_bytes / (gigabytes * 1e9) < 1.09
    vector = 2 * card.multiprocessors * card.compiler['fpus_per_core'] * card.clock_ghz * 1e9
    assert card.peak_flops['float32'] == pytest.approx(vector, rel=0.02)
    assert card.peak('float32') <= card.peak('float16') <= card.peak('float8_e4m3fn')
    text = card.target_config()
    assert text.count('{') == text.count('}')
    assert f'core_count: {card.multiprocessors} ' in text


def test_types_without_units_run_as_float32():
    assert cards.find('v100-16').peak('bfloat16') == 15.7e12
    assert cards.find('gtx1080').peak('float16') == 8.87e12
    assert cards.find('a100-80').peak('float8_e4m3fn') == 312e12


def test_a_running_device_is_recognised():
    assert cards.of_device('NVIDIA H100 80GB HBM3').name == 'h100'
    assert cards.of_device('NVIDIA GeForce RTX 4090').name == 'rtx4090'
    assert cards.of_device('Tesla V100-SXM2-32GB').name == 'v100-32'
    assert cards.of_device('cpu') is None


def test_cpu_peak_is_measured():
    assert cards.cpu_peak(size=128, rounds=2) > 1e7
