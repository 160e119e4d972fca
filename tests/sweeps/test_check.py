"""What is looked at before a sweep starts: whether two trials are the same run."""

import pytest

from jaxdl.core import flags
from jaxdl.data.text.tokenizers import WordPiece
from jaxdl.sweeps import check


def text_config(path, vocab=None):
    config = flags.load_config('char_rnn:files')
    config.data.source.train = str(path)
    if vocab is not None:
        config.data.tokenizer = WordPiece(vocab=str(vocab))
    return config


@pytest.fixture
def texts(tmp_path):
    """One text at two places, one that differs in a letter, and two vocabularies."""
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    files = {
        'a.txt': 'rain and wind\n',
        'moved/b.txt': 'rain and wind\n',
        'c.txt': 'rain and wine\n',
    }
    files |= {'v.txt': '\n'.join([*special, 'rain']), 'w.txt': '\n'.join([*special, 'wind'])}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_trials_are_the_same_run_by_the_bytes_of_their_files(texts):
    def name(*files):
        return check.identity(text_config(*(texts / file for file in files)))

    assert name('a.txt') == name('moved/b.txt') != name('c.txt')
    assert name('a.txt', 'v.txt') == name('moved/b.txt', 'v.txt') != name('a.txt', 'w.txt')
    (texts / 'x.txt').write_bytes((texts / 'v.txt').read_bytes())
    assert name('a.txt', 'v.txt') == name('a.txt', 'x.txt')


def test_what_places_a_run_does_not_name_it():
    names = set()
    for words in ([], ['--config.steps=7'], ['--config.mesh.data=2'], ['--config.log_every=3']):
        names.add(check.identity(check.read_config('digits_cnn', words)))
    assert len(names) == 1
    assert check.identity(check.read_config('digits_cnn', ['--config.batch_size=32'])) not in names


def test_a_file_that_is_missing_is_told_of_its_trial(tmp_path):
    words = [f'--config.data.source.train={tmp_path / "gone.txt"}']
    (found,) = check.check_trials([{'config': 'char_rnn:files', 'words': words}])
    assert 'gone.txt' in found['error']
