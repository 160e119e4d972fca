"""Weights of another run: every leaf is loaded, skipped by a pattern, or an error."""

import jax
import numpy as np
import pytest

from jaxdl.core.config import Checkpoint, InitFrom, Mesh
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.run import loop as trainer
from jaxdl.run import warm_start
from tests import faulty, small


def shapes(**leaves) -> dict:
    return {
        name.replace('_', '/'): jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in leaves.items()
    }


THERE = shapes(body_kernel=(3, 4), body_bias=(4,), head_kernel=(4, 10))


def test_equal_models_need_no_words():
    found = warm_start.match(THERE, THERE, InitFrom('x'))
    assert found.explained() and found.loaded == {name: name for name in THERE}


def test_what_differs_is_an_error_until_it_is_explained():
    here = shapes(trunk_kernel=(3, 4), trunk_bias=(4,), head_kernel=(4, 5), extra_scale=(1,))
    found = warm_start.match(THERE, here, InitFrom('x'))
    assert not found.explained() and not found.loaded
    assert found.missing == ['trunk/kernel', 'trunk/bias', 'extra/scale']
    assert found.unused == ['body/kernel', 'body/bias']
    assert found.mismatched == {'head/kernel': 'float32[4, 10] there, float32[4, 5] here'}
    options = InitFrom('x', rename=(('^body/', 'trunk/'),), skip=('^head/', '^extra/'))
    found = warm_start.match(THERE, here, options)
    assert found.explained()
    assert found.loaded == {'trunk/kernel': 'body/kernel', 'trunk/bias': 'body/bias'}
    assert found.skipped == ['head/kernel', 'extra/scale']
    lines = found.table().splitlines()
    assert 'loaded      trunk/kernel  (there body/kernel)' in lines
    assert 'skipped     extra/scale' in lines


def test_a_leaf_left_there_needs_a_word_too():
    here = {name: leaf for name, leaf in THERE.items() if not name.startswith('head')}
    assert warm_start.match(THERE, here, InitFrom('x')).unused == ['head/kernel']
    found = warm_start.match(THERE, here, InitFrom('x', skip=('head',)))
    assert found.explained() and found.skipped == ['other run: head/kernel']


def test_renames_must_not_collide():
    with pytest.raises(UserError, match=r'kernel and \w+/kernel would both become'):
        warm_start.match(THERE, THERE, InitFrom('x', rename=(('body|head', 'same'),)))


def test_a_folder_and_a_step(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'odd:7').mkdir()
    assert warm_start.split(f'{tmp_path}/run') == (tmp_path / 'run' / 'checkpoints', None)
    assert warm_start.split(f'{tmp_path}/run:40') == (tmp_path / 'run' / 'checkpoints', 40)
    assert warm_start.split(f'{tmp_path}/odd:7') == (tmp_path / 'odd:7' / 'checkpoints', None)
    with pytest.raises(UserError, match=r"there is no such folder; did you mean 'run'\?"):
        warm_start.split(f'{tmp_path}/rum:3')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run's folder with the checkpoints 3 and 5 of a fresh CNN, and the state of 5."""
    folder = tmp_path_factory.mktemp('other')
    made, feed, order = small.program(faulty.config(seed=7))
    store = Checkpoints(folder / 'checkpoints', Checkpoint(keep=5))
    rows = feed.source.fetch(order.batch(0))
    for step in (3, 5):
        state = made.init(rows).replace(step=jax.numpy.int32(step))
        # The averages are what evaluation uses: told apart here.
        state = state.replace(ema=jax.tree.map(lambda x, s=step: x + s, state.ema))
        assert store.save(step, state, extra={}) and store.wait()
    store.close()
    return folder, jax.tree.map(np.asarray, state)


def load(path, config, devices=1, mesh=None, **options):
    config.mesh = mesh or Mesh()
    made, feed, order = small.program(config, devices)
    state = made.init(feed.source.fetch(order.batch(0)))
    before = jax.tree.map(np.asarray, state)
    after, table = warm_start.load(InitFrom(str(path), **options), made, state, made.hyper)
    return before, after, table


def leaves(tree) -> dict:
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_averaged_weights_and_statistics_are_loaded_onto_another_mesh(saved):
    folder, other = saved
    before, after, table = load(folder, faulty.config(), devices=4, mesh=Mesh(data=1, fsdp=4))
    for part in ('params', 'model_state'):
        expected = leaves(other.ema[part])
        for name, leaf in leaves(getattr(after, part)).items():
            np.testing.assert_array_equal(leaf, expected[name])
        for name, leaf in leaves(after.ema[part]).items():
            np.testing.assert_array_equal(leaf, expected[name])
    assert (
        int(after.step) == 0 and leaves(after.opt_state).keys() == leaves(before.opt_state).keys()
    )
    assert table.startswith(f'weights of step 5 of {folder}:\nloaded ')
    made, _, _ = small.program(faulty.config(mesh=Mesh(data=1, fsdp=4)), 4)
    for leaf, place in zip(jax.tree.leaves(after), jax.tree.leaves(made.shardings), strict=True):
        assert leaf.sharding == place


def test_a_chosen_step_and_a_new_head(saved):
    folder, other = saved
    model = faulty.config().model.clone(num_classes=5)
    config = faulty.config(model=model)
    config.task.num_classes = 5
    with pytest.raises(UserError) as caught:
        load(f'{folder}:3', config)
    assert 'of another shape (classifier/' in str(caught.value)
    assert "init_from.skip=('classifier',)" in str(caught.value)
    before, after, _ = load(f'{folder}:3', config, skip=('^classifier/',))
    for name, leaf in leaves(after.params).items():
        fresh = leaves(before.params)[name]
        expected = fresh if name.startswith('classifier') else leaves(other.params)[name] + 3
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    _, other = saved
    bad = other.replace(ema=jax.tree.map(lambda x: np.full_like(x, np.nan), other.ema))
    store = Checkpoints(tmp_path / 'run' / 'checkpoints', Checkpoint())
    placed = jax.device_put(bad, small.program(faulty.config())[0].shardings)
    assert store.save(5, placed, extra={}) and store.wait()
    store.close()
    with pytest.raises(UserError, match='of step 5 is not finite; give an earlier step'):
        load(tmp_path / 'run', faulty.config())


def test_no_such_step_or_nothing_to_load(saved):
    folder, _ = saved
    with pytest.raises(UserError, match=r'no checkpoint of step 4 in .*; its checkpoints are 3, 5'):
        load(f'{folder}:4', faulty.config())
    with pytest.raises(UserError, match='no leaf is loaded'):
        load(folder, faulty.config(), skip=('.*',))


def test_a_damaged_checkpoint_is_not_loaded_from(saved, tmp_path, capsys):
    import shutil

    folder, other = saved
    shutil.copytree(folder, tmp_path / 'copy')
    data = max(
        (tmp_path / 'copy' / 'checkpoints' / '5').rglob('d/*'), key=lambda p: p.stat().st_size
    )
    data.write_bytes(data.read_bytes()[:-40] + b'x' * 40)
    _, after, table = load(tmp_path / 'copy', faulty.config())
    assert 'weights of step 3' in table and 'checkpoints/5 is damaged' in capsys.readouterr().err
    np.testing.assert_allclose(
        leaves(after.params)['classifier/kernel'],
        leaves(other.params)['classifier/kernel'] + 3,
        rtol=1e-6,
    )
    assert sorted(p.name for p in (tmp_path / 'copy').iterdir()) == ['checkpoints']


def test_a_run_starts_from_another(saved, tmp_path, monkeypatch, capsys):
    from tests.run.test_loop import on_devices

    on_devices(monkeypatch, 1)
    folder, _ = saved
    config = faulty.config(init_from=InitFrom(str(folder)), steps=2, eval_every=0)
    trainer.train(config, str(tmp_path / 'run'))
    assert 'loaded      classifier/kernel' in capsys.readouterr().out
    trainer.train(
        faulty.config(init_from=InitFrom(str(folder)), steps=3, eval_every=0), str(tmp_path / 'run')
    )
    assert 'loaded' not in capsys.readouterr().out, 'a resume takes its own weights'
