"""Bad input by the hundred: whatever comes, it works or ends in one teaching line and exit code 2."""

import json
import random
import shutil

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdl.core import config as config_lib
from jaxdl.core import flags
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.labels import LabelledTexts
from jaxdl.data.text.packing import Packed
from jaxdl.data.text.pairs import SentencePairs
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bytes
from jaxdl.errors import UserError
from jaxdl.record import checkpoints
from jaxdl.record.folder import Workdir
from tests import small

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=300)

WORDS = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=12)
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ['', 'true', 'None', '[]', '()', '(1,2)', "('a',)", '{}', '-1', '0', '1e400', 'nan', '0x10']
    ),
    WORDS,
)


def teaches(text: str) -> bool:
    """One or two lines without a traceback (a list of what is allowed may follow)."""
    return bool(text.strip()) and 'Traceback' not in text and len(text.splitlines()) <= 4


# ---- command lines ----

PATHS = [
    path.removeprefix('config.')
    for path, *_ in config_lib.describe(flags.load_config('digits_cnn'))
]


@FEW
@given(st.sampled_from(PATHS), VALUES)
def test_what_parses_builds_a_mesh_and_an_optimizer(path, text):
    """Values that pass the checks are values that the core can use."""
    try:
        config = flags.apply_overrides(flags.load_config('digits_cnn'), [(path, text)])
        config_lib.check(config)
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:2])
        mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, mesh)
        rate = float(config.optimizer.rate(1, config.steps))
        config.optimizer.build(config.steps)
        assert rate == rate
    except UserError as error:
        assert teaches(str(error)), error


# ---- the folder of a run ----


@st.composite
def damaged(draw, tree):
    """`tree` (JSON) with one part replaced or removed."""
    junk = st.sampled_from([None, [], {}, 'x', -1, 1.5, True, {'type': 'os:system'}, [['a']]])
    tree = json.loads(json.dumps(tree))
    node = tree
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        deeper = isinstance(node[key], dict | list) and node[key] and draw(st.booleans())
        if not deeper:
            break
        node = node[key]
    if draw(st.booleans()):
        del node[key]
    else:
        node[key] = draw(junk)
    return tree


CONFIG = json.loads(json.dumps(config_lib.to_json(small.config())))


@MANY
@given(damaged(CONFIG))
def test_config_json(tree):
    try:
        found = config_lib.from_json(tree)
        if isinstance(found, config_lib.Config):
            config_lib.check(found)
    except UserError as error:
        assert teaches(str(error)), error


@FEW
@given(st.binary(max_size=40))
def test_config_json_of_any_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('run')
    (folder / 'config.json').write_bytes(data)
    with pytest.raises(UserError) as caught:
        Workdir(folder).check_config(small.config())
    assert teaches(str(caught.value))


# ---- checkpoints ----


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A folder with the steps 1 and 2 of a tiny state; the abstract state; the arrays."""
    folder = tmp_path_factory.mktemp('good') / 'checkpoints'
    place = mesh_lib.replicated(mesh_lib.make_mesh(Mesh(), jax.devices()[:1]))
    state = {'a': np.arange(6, dtype=np.float32), 'step': np.int32(0)}
    store = checkpoints.Checkpoints(folder, config_lib.Checkpoint(keep=5))
    for step in (1, 2):
        placed = jax.device_put({**state, 'step': np.int32(step)}, place)
        assert store.save(step, placed, extra={'n': step}) and store.wait()
    store.close()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place), state
    )
    return folder, abstract, placed, state


def scramble(folder, rng: random.Random) -> None:
    """Does something to some file or folder under `folder`, which holds checkpoints."""
    path = rng.choice(sorted(folder.rglob('*')))
    action = rng.choice(['delete', 'empty', 'garbage', 'cut', 'grow', 'rename', 'swap', 'litter'])
    if action == 'litter':
        name = rng.choice(['3', '007', '²', 'x', '9.orbax-checkpoint-tmp', '-1', '4'])
        target = folder / name
        if not target.exists():
            target.mkdir() if rng.random() < 0.5 else target.write_bytes(b'x')
    elif action == 'rename':
        path.rename(path.with_name(path.name + rng.choice(['~', '.tmp', '0'])))
    elif path.is_dir():
        shutil.rmtree(path)
        if action in ('empty', 'swap'):
            path.mkdir() if action == 'empty' else path.write_bytes(b'')
    elif action == 'delete':
        path.unlink()
    elif action == 'swap':
        path.unlink()
        path.mkdir()
    else:
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes(
            {
                'empty': b'',
                'garbage': rng.randbytes(len(data)),
                'cut': data[:half],
                'grow': data + rng.randbytes(9),
            }[action]
        )


def test_checkpoint_folders(good, tmp_path):
    """80 folders, each damaged in one to three ways: the right values or an error, and saving works."""
    folder, abstract, placed, state = good
    outcomes = {'newest': 0, 'older': 0, 'error': 0}
    for seed in range(80):
        rng = random.Random(seed)
        copy = tmp_path / str(seed) / 'checkpoints'
        shutil.copytree(folder, copy)
        for _ in range(rng.randint(1, 3)):
            scramble(copy, rng)
            if not any(copy.iterdir()):
                break
        store = checkpoints.Checkpoints(copy, config_lib.Checkpoint())
        try:
            step, found, extra = store.restore(abstract)
        except UserError as error:
            assert teaches(str(error)), error
            outcomes['error'] += 1
        else:
            assert int(found['step']) == step and extra == {'n': step}, f'seed {seed}'
            np.testing.assert_array_equal(np.asarray(found['a']), state['a'])
            outcomes['newest' if step == 2 else 'older'] += 1
            if seed % 4 == 0:  # the run goes on in such a folder
                assert store.save(12, placed, extra={'n': 12}) and store.wait(), f'seed {seed}'
        store.close()
        shutil.rmtree(copy.parent)
    assert min(outcomes.values()) > 5, outcomes


# ---- data files ----

TEXTS = st.one_of(
    st.binary(max_size=60),
    st.lists(WORDS, max_size=5).map(lambda lines: '\n'.join(lines).encode()),
    st.lists(st.dictionaries(st.sampled_from(['text', 'label', 'x']), WORDS), max_size=3).map(
        lambda rows: '\n'.join(map(json.dumps, rows)).encode()
    ),
    st.lists(st.lists(WORDS, max_size=3).map('\t'.join), max_size=4).map('\n'.join).map(str.encode),
)


@MANY
@given(
    TEXTS,
    st.sampled_from(['.txt', '.jsonl', '.tsv', '.txt.gz', '.jsonl.gz']),
    st.sampled_from(['text', 'pairs', 'labels']),
)
def test_text_files(tmp_path_factory, data, ending, kind):
    folder = tmp_path_factory.mktemp('data')
    path = folder / f'train{ending}'
    path.write_bytes(data)
    source = TextFiles(str(path))
    common = {'source': source, 'tokenizer': Bytes(), 'cache': str(folder / 'cache')}
    made = {
        'text': lambda: Documents(length=16, packing=Packed(context=4), **common),
        'pairs': lambda: SentencePairs(source_length=16, target_length=16, **common),
        'labels': lambda: LabelledTexts(length=16, **common),
    }[kind]()
    try:
        source = made.train_source()
        if len(source):
            rows = source.fetch(np.arange(min(2, len(source))))
            assert all(len(values) == min(2, len(source)) for values in rows.values())
    except UserError as error:
        assert teaches(str(error)), error
    shutil.rmtree(folder)
