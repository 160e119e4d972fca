"""From one's own files to a trained model in one command line; wrong files end with exit code 2."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdl import errors
from jaxdl.commands import evaluate
from tests.commands.test_train import said_by

SHORT = (
    '--config.steps=8',
    '--config.batch_size=8',
    '--config.log_every=4',
    '--config.eval_every=4',
    '--config.checkpoint.every=4',
)
TINY = ('--config.model.channels=(8,)', '--config.model.pools=1', '--config.data.image_size=12')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes that differ in their colour."""
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'cache'))
    rng = np.random.default_rng(0)
    for number, name in enumerate(('red', 'green', 'blue')):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for index in range(16):
            pixels = rng.integers(0, 120, (20, 14 + index, 3), np.uint8)
            pixels[..., number] += 130
            Image.fromarray(pixels).save(tmp_path / 'data' / name / f'{index}.jpg')
    return tmp_path / 'data'


def test_a_folder_of_pictures(folder, tmp_path):
    run = tmp_path / 'run'
    words = ('--config=images', f'--config.data.folder={folder}', f'--workdir={run}', *SHORT, *TINY)
    code, said, error = said_by(*words)
    assert code == 0, error
    assert 'done: valid/accuracy' in said
    config = json.loads((run / 'config.json').read_text())
    assert config['model']['num_classes'] == config['task']['num_classes'] == 3
    kept = json.loads((run / 'labels.json').read_text())
    assert kept == {'classes': ['blue', 'green', 'red']}
    # It is resumed, from another place too, and evaluated; a class more is another run.
    moved = shutil.move(folder, tmp_path / 'moved')
    words = tuple(word.replace(str(folder), str(moved)) for word in words)
    code, said, error = said_by(*words)
    assert code == 0 and 'already finished at step 8' in said, error
    (tmp_path / 'moved').rename(folder)
    assert errors.run(evaluate.main, ['evaluate', f'--workdir={run}']) == 0
    (folder / 'cyan').mkdir()
    shutil.copy(folder / 'red' / '0.jpg', folder / 'cyan')
    from jaxdl.data.images import own

    own._listed.cache_clear()
    code, _, error = said_by(*words[:1], f'--config.data.folder={folder}', *words[2:])
    assert code == 2 and 'num_classes: 3 there, 4 now' in error


def test_a_table(tmp_path, monkeypatch):
    rows = ['a,b,what']
    for index, (a, b) in enumerate(np.random.default_rng(0).normal(size=(60, 2))):
        rows.append(f'{a:.3f},{b + index % 2 * 5:.3f},{"yes" if index % 2 else "no"}')
    (tmp_path / 't.csv').write_text('\n'.join(rows))
    table = f'--config.data.train={tmp_path / "t.csv"}'
    words = ('--config=table_mlp:files', table, '--config.data.label=what', *SHORT)
    longer = ('--config.steps=40', '--config.eval_every=20', '--config.checkpoint.every=20')
    rate = '--config.optimizer.learning_rate=0.01'
    code, said, error = said_by(*words, *longer, rate, f'--workdir={tmp_path / "run"}')
    assert code == 0, error
    assert float(said.partition('valid/accuracy ')[2][:6]) > 0.95
    kept = json.loads((tmp_path / 'run' / 'labels.json').read_text())
    assert kept['classes'] == ['no', 'yes'] and [c[0] for c in kept['columns']] == ['a', 'b']


def broken(folder):
    (folder / 'red' / '0.jpg').write_bytes((folder / 'red' / '0.jpg').read_bytes()[:300])


def one_class(folder):
    shutil.rmtree(folder / 'red')
    shutil.rmtree(folder / 'blue')


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    'damage, words, message',
    [
        (lambda folder: None, [], "--config.data.folder='': give the folder of pictures"),
        (shutil.rmtree, ['--config.data.folder={}'], 'no such folder'),
        (empty, ['--config.data.folder={}'], 'data holds nothing; it needs a sub-folder'),
        (one_class, ['--config.data.folder={}'], "all training examples have the label 'green'"),
        (broken, ['--config.data.folder={}'], 'pictures cannot be read: {}/red/0.jpg: '),
        (
            lambda folder: None,
            ['--config.data.folder={}', '--config.task.num_classes=4'],
            '--config.task.num_classes=4: the data has 3 classes (blue, green, red); give',
        ),
        (
            lambda folder: (folder / 'valid').mkdir() or (folder / 'red').rename(folder / 'train'),
            ['--config.data.folder={}'],
            'holds 16 files but no folder',
        ),
    ],
)
def test_wrong_folders(folder, tmp_path, damage, words, message):
    damage(folder)
    words = [word.format(folder) for word in words]
    code, _, error = said_by('--config=images', *words, *TINY, f'--workdir={tmp_path / "run"}')
    assert code == 2 and len(error.splitlines()) <= 2, error
    assert message.format(folder) in error
    assert not (tmp_path / 'run').exists()


def test_labels_without_a_file(tmp_path):
    (tmp_path / 'rows.csv').write_text('image,label\na.png,x\nb.png,y\n')
    code, _, error = said_by(
        '--config=images:table', f'--config.data.train={tmp_path / "rows.csv"}'
    )
    assert code == 2 and f'{tmp_path}/a.png (rows.csv row 0): there is no such file; 2' in error
