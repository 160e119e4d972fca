"""samples.jsonl: each step once, also after a crash; a disk that refuses ends it, not the run."""

import resource

import pytest

from jaxdl.record.samples import SamplesFile
from tests import small


def test_a_torn_or_later_line_goes(tmp_path):
    path = tmp_path / 'samples.jsonl'
    file = SamplesFile(path, last_step=0)
    for step in range(1, 6):
        file.write(step, [step, step + 1])
    file.close()
    with open(path, 'ab') as torn:
        torn.write(b'{"step": 6, "ids": [6')
    file = SamplesFile(path, last_step=9)
    assert sorted(small.samples(path)) == [1, 2, 3, 4, 5]
    file.truncate(3)
    file.write(4, [7])
    file.close()
    assert small.samples(path) == {1: [1, 2], 2: [2, 3], 3: [3, 4], 4: [7]}


@pytest.mark.parametrize('line', [b'\n', b'7\n', b'{"step": 2, "ids": [0]}\n', b'\xff\n', b'{}\n'])
def test_nothing_after_a_broken_line_is_trusted(line, tmp_path):
    path = tmp_path / 'samples.jsonl'
    good = b'{"step": 1, "ids": [5]}\n{"step": 2, "ids": [6]}\n'
    path.write_bytes(good + line + b'{"step": 3, "ids": [7]}\n')
    SamplesFile(path, last_step=9).close()
    assert path.read_bytes() == good


def test_a_full_disk_ends_the_file_not_the_run(tmp_path, capsys):
    path = tmp_path / 'samples.jsonl'
    file = SamplesFile(path, last_step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for step in range(1, 20):
            file.write(step, [step])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.flush()
    file.close()
    said = capsys.readouterr().err
    assert said.count('cannot write') == 1 and 'Training goes on' in said
    SamplesFile(path, last_step=99).close()
    kept = small.samples(path)
    assert kept == {step: [step] for step in range(1, len(kept) + 1)} and 2 <= len(kept) < 6
