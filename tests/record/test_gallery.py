"""samples/: the newest few of each name, nothing past the step a run goes back to."""

import os

import numpy as np
import pytest

from jaxdl.record.gallery import KEPT, Gallery, newest
from jaxdl.record.pictures import encode_png


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def test_the_newest_of_each_name_stay(tmp_path):
    png = encode_png(np.zeros((2, 3, 1), np.uint8))
    gallery = Gallery(tmp_path / 'samples', last_step=0)
    assert not gallery.folder.exists()
    gallery.picture(0, 'train/images', png)
    for step in range(10, 70, 10):
        gallery.picture(step, 'eval/test/confusion', png + bytes([step]))
        gallery.text(step, 'eval/sample', f'step {step} – ü')
    steps = range(10, 70, 10)[-KEPT:]
    assert names(gallery.folder) == {
        '0/train/images.png',
        *(f'{step}/eval/test/confusion.png' for step in steps),
        *(f'{step}/eval/sample.md' for step in steps),
    }
    assert {p.name for p in gallery.folder.iterdir()} == {'0', *map(str, steps)}
    found = newest(gallery.folder)
    assert {name: step for name, (step, _) in found.items()} == {
        'train/images.png': 0, 'eval/test/confusion.png': 60, 'eval/sample.md': 60,
    }  # fmt: skip
    assert found['eval/test/confusion.png'][1].read_bytes() == png + bytes([60])
    gallery.text(60, 'eval/sample', 'again')
    assert newest(gallery.folder)['eval/sample.md'][1].read_text() == 'again'
    Gallery(tmp_path / 'samples', last_step=50)
    found = newest(gallery.folder)
    assert found['eval/sample.md'][0] == 50 and found['eval/sample.md'][1].read_text()[-1] == 'ü'
    gallery.truncate(-1)
    assert newest(gallery.folder) == {} and newest(tmp_path / 'nothing') == {}


@pytest.mark.parametrize('name', ['../../x', '/x', 'a//b', '..', 'eval/a b:c/x', ''])
def test_no_name_leaves_the_folder(tmp_path, name):
    gallery = Gallery(tmp_path / 'run' / 'samples', last_step=0)
    gallery.text(5, name, 'text')
    (file,) = names(tmp_path)
    assert file.startswith('run/samples/5/') and file.endswith('.md')
    assert len(newest(gallery.folder)) == 1


def test_a_disk_that_refuses_is_said_once(tmp_path, capsys):
    (tmp_path / 'samples').write_text('in the way')
    gallery = Gallery(tmp_path / 'samples', last_step=0)
    gallery.text(1, 'a', 'b')
    gallery.text(2, 'a', 'b')
    assert capsys.readouterr().err.count('cannot write samples in') == 1
    os.unlink(tmp_path / 'samples')
    gallery.text(3, 'a', 'b')
    assert newest(gallery.folder)['a.md'][0] == 3
