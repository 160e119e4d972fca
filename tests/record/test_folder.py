"""A run's folder: one owner at a time, one config, an answer to every odd folder."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jaxdl.core import config as config_lib
from jaxdl.errors import UserError
from jaxdl.record.folder import Workdir
from tests import small
from tests.chaos import ROOT

HOLD = (
    'import sys, time\n'
    'from jaxdl.record.folder import Workdir\n'
    'place = Workdir(sys.argv[1]); place.create()\n'
    'print("held", flush=True); time.sleep(60)\n'
)


def test_a_second_process_is_refused_and_a_dead_owner_holds_nothing(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path / 'run')], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b'held\n'
    with pytest.raises(UserError, match=f'is in use by process {owner.pid} on ') as caught:
        Workdir(tmp_path / 'run').create()
    assert caught.value.exit_code == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    place = Workdir(tmp_path / 'run')
    place.create()
    with pytest.raises(UserError, match=f'is in use by process {os.getpid()} on '):
        Workdir(tmp_path / 'run').create()
    place.release()
    Workdir(tmp_path / 'run').create()


def test_a_folder_that_cannot_be_written_or_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='give a folder that can be written'):
        Workdir(tmp_path / 'file' / 'run').create()
    locked = tmp_path / 'locked'
    locked.mkdir(mode=0o555)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o555)
    root = os.geteuid() == 0
    if root:  # whom permissions do not stop
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match='Permission denied; give a folder that can be written'):
            Workdir(locked / 'run').create()
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'notes.txt': 'x'}, 'is not empty and holds no run .it has notes.txt'),
        ({'metrics.jsonl': ''}, 'holds a run but its config.json is missing'),
        ({'checkpoints/3/x': ''}, 'holds a run but its config.json is missing'),
        ({'config.json': '{"type": '}, 'config.json cannot be read'),
    ],
)
def test_odd_folders(content, message, tmp_path):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Workdir(tmp_path).check_config(small.config())


def test_what_a_kill_at_the_very_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / '.lock').write_text('1')
    (tmp_path / '.config.json.7.tmp').write_text('{')
    Workdir(tmp_path).check_config(small.config())


def test_all_fields_that_differ_are_named(tmp_path):
    place = Workdir(tmp_path)
    tree = config_lib.to_json(small.config())
    place.config.write_text(json.dumps(tree))
    place.check_config(small.config())
    other = small.config(seed=4, batch_size=96)
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError) as caught:
        place.check_config(other)
    for words in (
        'config.seed: 0 there, 4 now',
        'config.batch_size: 48 there, 96 now',
        'config.optimizer.learning_rate: 0.05 there, 0.5 now',
    ):
        assert words in str(caught.value)
    free = small.config(steps=99, log_every=1, eval_every=3, hang_timeout=5.0, prefetch=9)
    place.check_config(free)


def test_a_field_that_is_newer_than_the_run_counts_with_its_default(tmp_path):
    place = Workdir(tmp_path)
    tree = json.loads(json.dumps(config_lib.to_json(small.config())))
    del tree['accumulate'], tree['model']['momentum']
    place.config.write_text(json.dumps(tree))
    place.check_config(small.config())
    with pytest.raises(UserError, match=r'config\.accumulate: 1 there, 2 now'):
        place.check_config(small.config(accumulate=2))


@pytest.mark.parametrize('text', ['', '[]', '{"saved": "x"}', '{"saved": null}', '\x00'])
def test_a_broken_run_json_is_no_saved_step(text, tmp_path):
    (tmp_path / 'run.json').write_text(text)
    assert Workdir(tmp_path).saved_step() is None
    (tmp_path / 'run.json').write_text('{"saved": 7, "status": "failed"}')
    assert Workdir(tmp_path).saved_step() == 7 and Workdir(tmp_path).status() == 'failed'


# ---- the data it was trained on ----


def text_config(folder, **changes):
    from jaxdl.data.text.documents import Documents
    from jaxdl.data.text.sources import TextFiles

    config = small.config()
    source = TextFiles(str(folder / 'train*.txt'), (f'valid={folder / "valid.txt"}',))
    config.data = Documents(source=source, **changes)
    return config


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / 'old'
    folder.mkdir()
    (folder / 'train.txt').write_text('the lighthouse keeper counts the boats\n' * 9)
    (folder / 'valid.txt').write_text('the boats count the keeper\n' * 3)
    return folder


def test_data_may_move_and_nothing_else_take_its_place(texts, tmp_path):
    place = Workdir(tmp_path / 'run')
    place.begin(text_config(texts))
    texts.rename(tmp_path / 'new')
    moved = text_config(tmp_path / 'new', cache=str(tmp_path / 'cache'))
    Workdir(place.path).check_config(moved)
    for name, text in (('train', 'the lighthouse keeper counts the goats\n'), ('valid', 'x')):
        path = tmp_path / 'new' / f'{name}.txt'
        good = path.read_bytes()
        path.write_text(text)
        with pytest.raises(UserError, match=rf'on other data: (eval/)?{name} had other bytes'):
            Workdir(place.path).check_config(moved)
        path.write_bytes(good)
    # The same bytes under another name of the set are other metrics.
    renamed = text_config(tmp_path / 'new')
    renamed.data.source.evals = (f'test={tmp_path / "new" / "valid.txt"}',)
    with pytest.raises(UserError, match='eval/test, eval/valid'):
        Workdir(place.path).check_config(renamed)
    # Where no fingerprint is known, a place is a field like any other.
    place.run.write_text('{}')
    with pytest.raises(UserError, match=r'config\.data\.source\.train: '):
        Workdir(place.path).check_config(moved)


def test_a_split_expression_is_no_place(tmp_path):
    """Of image sets `train` is not a path: other examples are another run."""
    place = Workdir(tmp_path)
    place.begin(small.config())
    other = small.config()
    other.data.train = 'train[:50%]'
    with pytest.raises(UserError, match=r'config\.data\.train: "train" there'):
        place.check_config(other)


def test_prepared_images_are_known_by_their_checksums(tmp_path, monkeypatch):
    place = Workdir(tmp_path)
    place.begin(small.config())
    known = place.read_run()['data']
    assert sorted(known) == ['digits test', 'digits train']
    place.check_data(known, small.config().data.fingerprint(train=False))
    info = json.loads(place.run.read_text())
    info['data']['digits train'] = '1,2'
    place.run.write_text(json.dumps(info))
    with pytest.raises(UserError, match='on other data: digits train'):
        Workdir(tmp_path).check_config(small.config())


# ---- classes of the user ----


def test_a_run_of_classes_outside_the_repository_is_opened_again(tmp_path, capsys):
    """Its config file is kept with it, and is run only where the user names it."""
    import jax

    from jaxdl.core import flags as cli
    from jaxdl.core.config import Checkpoint
    from jaxdl.record.checkpoints import Checkpoints
    from jaxdl.run.open_run import open_run
    from tests.core.test_config_json import NET

    source = tmp_path / 'mine.py'
    source.write_text(NET.format(note=''))
    config = cli.load_config(str(source))
    program, feed, order = small.program(config, len(jax.devices()))
    state = program.init(feed.source.fetch(order.batch(0)))
    place = Workdir(tmp_path / 'run')
    place.begin(config)
    store = Checkpoints(place.checkpoints, Checkpoint())
    assert store.save(0, state, extra={}) and store.wait()
    store.close()
    assert place.source.read_bytes() == source.read_bytes()
    source.unlink()
    with pytest.raises(UserError, match=r'names configs\.mine:Net(.*\n)*.*/run/config\.py'):
        open_run(str(place.path))
    run = open_run(str(place.path), config_file=str(place.source))
    assert run.step == 0 and run.config.model.width == 4
    place.source.write_text(NET.format(note='# another word'))
    with pytest.raises(UserError, match='is not the file that the run was trained with'):
        open_run(str(place.path), config_file=str(place.source))
    Workdir(place.path).check_config(config)  # a resume brings its own classes


def test_a_run_is_opened_without_its_training_data(texts, tmp_path):
    """An evaluation needs the evaluation sets, which are compared; a sample not even these."""
    import jax

    from jaxdl.core import flags as cli
    from jaxdl.core.config import Checkpoint
    from jaxdl.record.checkpoints import Checkpoints
    from jaxdl.run.open_run import open_run

    config = cli.load_config('configs/char_rnn.py:files')
    config = cli.apply_overrides(
        config,
        [
            ('model.width', '8'),
            ('model.layers', '1'),
            ('data.length', '16'),
            ('data.packing.context', '0'),
        ],
    )
    config.data.source.train = str(texts / 'train.txt')
    config.data.source.evals = (f'valid={texts / "valid.txt"}',)
    program, feed, order = small.program(config, len(jax.devices()))
    state = program.init(feed.source.fetch(order.batch(0)[:2]))
    place = Workdir(tmp_path / 'run')
    place.begin(config)
    store = Checkpoints(place.checkpoints, Checkpoint())
    assert store.save(0, state, extra={}) and store.wait()
    store.close()
    (texts / 'train.txt').unlink()
    assert list(open_run(str(place.path)).eval_sources) == ['valid']
    (texts / 'valid.txt').write_text('another text')
    with pytest.raises(UserError, match='on other data: eval/valid'):
        open_run(str(place.path))
    assert open_run(str(place.path), data=False).step == 0
    tokenizer = place.path / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text().replace('{', '{ ', 1))
    with pytest.raises(UserError, match=r'tokenizer\.json is not the file that step 0 was trained'):
        open_run(str(place.path), data=False)


@pytest.mark.parametrize('text', ['[' * 500, '{"a": ' * 500 + '1' + '}' * 500, '[' * 10**5])
def test_nested_json_is_no_traceback(text, tmp_path):
    for name in ('config.json', 'run.json', 'metrics.jsonl'):
        (tmp_path / name).write_text(text + '\n')
    with pytest.raises(UserError, match=r'cannot be read .*put it back'):
        Workdir(tmp_path).check_config(small.config())
    assert Workdir(tmp_path).read_run() == {}
    with pytest.raises(UserError, match='neither a readable run'):
        Workdir(tmp_path).saved_step()


def test_a_run_json_of_other_types_loses_only_what_it_says(tmp_path, capsys):
    (tmp_path / 'run.json').write_text('{"seconds": "x", "history": 3, "id": 5, "data": []}')
    info = Workdir(tmp_path).begin(small.config())
    assert info.data['seconds'] == 0 and len(info.data['history']) == 1
    assert len(info.data['id']) == 32
