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
