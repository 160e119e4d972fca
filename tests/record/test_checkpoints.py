"""Damage is found: flipped bytes, missing and cut files."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import config
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.errors import UserError
from jaxdl.record import checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with two good steps of a small state, and the abstract state."""
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    mesh = mesh_lib.make_mesh(Mesh(), jax.devices()[:1])
    place = mesh_lib.replicated(mesh)
    rng = np.random.default_rng(0)
    state = {
        # So large that the store writes it by itself, without a checksum of its own.
        'kernel': rng.normal(size=(370, 111)).astype(np.float32),
        'half': rng.normal(size=(5, 3)).astype(jnp.bfloat16),
        'step': np.int32(7),
        'flag': np.array([True, False]),
    }
    store = checkpoints.Checkpoints(folder, config.Checkpoint(keep=5))
    for step in (1, 2):
        placed = jax.device_put({**state, 'step': np.int32(step)}, place)
        assert store.save(step, placed, extra={'sums': [0.1, 2.5], 'counted': step})
        assert store.wait()
    store.close()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place), state
    )
    return folder, abstract, state


def restore(folder, abstract):
    store = checkpoints.Checkpoints(folder, config.Checkpoint(), read_only=True)
    try:
        return store.restore(abstract)
    finally:
        store.close()


def same(state, expected, step) -> bool:
    wanted = {**expected, 'step': np.int32(step)}
    return all(np.asarray(state[k]).tobytes() == np.asarray(wanted[k]).tobytes() for k in wanted)


def files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


def test_round_trip(saved):
    folder, abstract, state = saved
    step, found, extra = restore(folder, abstract)
    assert step == 2 and same(found, state, 2) and extra == {'sums': [0.1, 2.5], 'counted': 2}


@pytest.mark.parametrize(('mode', 'kept'), [('max', {'2', '6'}), ('min', {'4', '6'})])
def test_the_newest_and_the_best_are_kept(tmp_path, mode, kept):
    """Steps that were not evaluated have no value, and are kept only while they are new."""
    options = config.Checkpoint(keep=1, best='eval/test/accuracy', mode=mode)
    store = checkpoints.Checkpoints(tmp_path, options)
    for step, value in enumerate((None, 0.9, None, 0.1, None, 0.5), 1):
        state = jax.device_put({'step': np.int32(step)}, jax.devices()[0])
        assert store.save(step, state, extra={}, best=value) and store.wait()
    store.close()
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == kept


@pytest.mark.parametrize('flips', [20, pytest.param(200, marks=pytest.mark.slow)])
def test_no_flipped_byte_changes_a_value_unseen(flips, saved, tmp_path, capsys):
    """Whatever byte of whatever file is flipped: the newest step is right, or the older one is used."""
    folder, abstract, state = saved
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    rng = random.Random(0)
    caught = 0
    paths = [path for path in files(copy / '2') if path.stat().st_size]
    for _ in range(flips):
        path = rng.choice(paths)
        good = path.read_bytes()
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        step, found, extra = restore(copy, abstract)
        assert same(found, state, step), f'{path} was damaged and nobody saw it'
        assert extra == {'sums': [0.1, 2.5], 'counted': step}
        caught += step == 1
        path.write_bytes(good)
    assert caught > flips // 4
    assert 'is damaged' in capsys.readouterr().err


def test_the_arrays_of_another_state_are_found_by_their_digests(saved, tmp_path, capsys):
    """Whole files, each of them undamaged: the state of another run's step 2."""
    folder, abstract, state = saved
    place = abstract['kernel'].sharding
    other = {**state, 'kernel': state['kernel'] + 1e-3, 'step': np.int32(2)}
    store = checkpoints.Checkpoints(tmp_path / 'other', config.Checkpoint())
    assert store.save(2, jax.device_put(other, place), extra={}) and store.wait()
    store.close()
    shutil.copytree(folder, tmp_path / 'copy')
    shutil.rmtree(tmp_path / 'copy' / '2' / 'state')
    shutil.copytree(tmp_path / 'other' / '2' / 'state', tmp_path / 'copy' / '2' / 'state')
    step, found, _ = restore(tmp_path / 'copy', abstract)
    assert step == 1 and same(found, state, 1)
    assert 'the bytes of kernel do not match their digest' in capsys.readouterr().err


def test_a_step_under_another_number_is_none_of_this_run(saved, tmp_path):
    folder, *_ = saved
    shutil.copytree(folder, tmp_path / 'copy')
    shutil.copytree(folder / '2', tmp_path / 'copy' / '9')
    store = checkpoints.Checkpoints(tmp_path / 'copy', config.Checkpoint(), read_only=True)
    assert store.check()['step'] == 2 and store.check(9) == {}
    store.close()


def test_missing_and_cut_files(saved, tmp_path):
    folder, abstract, state = saved
    for index, path in enumerate(files(folder / '2')):
        for kind in ('missing', 'cut'):
            copy = tmp_path / f'{index}{kind}'
            shutil.copytree(folder, copy)
            target = copy / '2' / path.relative_to(folder / '2')
            if kind == 'missing':
                target.unlink()
            else:
                target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
            step, found, _ = restore(copy, abstract)
            assert same(found, state, step), f'{path} {kind}'
            shutil.rmtree(copy)


def test_none_good_says_what_was_tried(saved, tmp_path):
    folder, abstract, _ = saved
    copy = tmp_path / 'run' / 'checkpoints'
    shutil.copytree(folder, copy)
    for path in files(copy):
        if path.name == '_CHECKPOINT_METADATA':
            path.unlink()
    store = checkpoints.Checkpoints(copy, config.Checkpoint())
    with pytest.raises(UserError, match=r'step 2: .*step 1: '):
        store.restore(abstract)
    store.close()
    # Nothing is moved where nothing replaces it, so the next call says the same.
    assert store.steps() == [1, 2] and not (tmp_path / 'run' / 'damaged').exists()


def test_a_step_that_orbax_passes_over_is_a_failed_save(saved, tmp_path, capsys):
    """A folder of a later step, which nobody looked at, makes Orbax skip all steps below it."""
    folder, _, state = saved
    shutil.copytree(folder, tmp_path / 'checkpoints')
    shutil.copytree(tmp_path / 'checkpoints' / '2', tmp_path / 'checkpoints' / '90')
    store = checkpoints.Checkpoints(tmp_path / 'checkpoints', config.Checkpoint(keep=5))
    placed = jax.device_put({**state, 'step': np.int32(3)}, jax.devices()[0])
    store.save(3, placed, extra={})
    assert not store.wait()
    assert 'checkpoint of step 3 could not be saved' in capsys.readouterr().err
    store.close()


def test_the_step_inside_the_state_counts(tmp_path, capsys):
    store = checkpoints.Checkpoints(tmp_path, config.Checkpoint(keep=5))
    placed = jax.device_put({'step': np.int32(3)}, jax.devices()[0])
    for step in (3, 4):
        assert store.save(step, placed, extra={}) and store.wait()
    place = mesh_lib.replicated(mesh_lib.make_mesh(Mesh(), jax.devices()[:1]))
    step, *_ = store.restore({'step': jax.ShapeDtypeStruct((), np.int32, sharding=place)})
    store.close()
    assert step == 3 and 'its state is of step 3' in capsys.readouterr().err


def test_a_record_is_sealed(tmp_path):
    """Whatever is changed in the text of a record and still parses to something else is seen."""
    from jaxdl.record import identity

    content = {kind: value() for kind, value in identity.IN_CHECKPOINT.items()}
    text = identity.seal({**content, 'step': 7, 'extra': {'a': float('nan'), 'b': [1, 2.5]}})
    path, rng = tmp_path / 'record.json', random.Random(0)
    path.write_bytes(text)
    good = identity.read_record(path)
    assert good['step'] == 7
    for _ in range(300):
        data = bytearray(text)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert repr(identity.read_record(path)) == repr(good)
        except ValueError:
            pass
