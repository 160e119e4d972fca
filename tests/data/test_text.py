import bz2
import dataclasses
import functools
import gzip
import json
import lzma
import os
import random
import shutil

import numpy as np
import pytest

from jaxdl.data import cached, records, store
from jaxdl.data.arrays import ArraySource
from jaxdl.data.text import corpus as corpus_lib
from jaxdl.data.text import reading
from jaxdl.data.text import tokenizers as tok
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.labels import LabelledTexts
from jaxdl.data.text.masked import Masked
from jaxdl.data.text.packing import Packed
from jaxdl.data.text.pairs import SentencePairs
from jaxdl.data.text.sources import (
    FileRecords,
    LibraryRecords,
    StandardLibrary,
    TextFiles,
    TfdsText,
)
from jaxdl.data.text.tokenizers import Bpe, Bytes
from jaxdl.errors import UserError

FILES = {field.name for field in dataclasses.fields(TextFiles)}


def of_files(kind, **settings):
    """A set of that kind on local files; the settings are its own or those of its files."""
    files = {name: settings.pop(name) for name in FILES & set(settings)}
    return kind(source=TextFiles(**files), **settings)


documents = functools.partial(of_files, Documents)
pairs_of = functools.partial(of_files, SentencePairs)
labelled = functools.partial(of_files, LabelledTexts)

DOCUMENTS = ['First document.\nIt has two lines.', 'Zweites: Größe, 猫.', 'third']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    return str(path)


def jsonl(texts, **more):
    return ''.join(json.dumps({'id': i, 'text': t, **more}) + '\n' for i, t in enumerate(texts))


def texts_of(data, source=None):
    """The documents that a source's rows hold, in their order in the corpus."""
    corpus = (source or data.train_source()).corpus
    return [data.tokenizer.decode(corpus.tokens(k)) for k in range(len(corpus.lengths))]


# ---- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize('end', ['', '.gz'])
def test_formats(tmp_path, end):
    path = write(tmp_path / f'a.jsonl{end}', jsonl(DOCUMENTS) + '\n')
    assert texts_of(documents(train=path)) == DOCUMENTS
    path = write(tmp_path / f'a.tsv{end}', 'x\tone\r\ny\ttwo\n')
    assert texts_of(documents(train=path, columns=(1,))) == ['one', 'two']
    path = write(tmp_path / f'a.txt{end}', 'one\ntwo\n\n\nthree\n')
    for unit, wanted in (
        ('file', ['one\ntwo\n\n\nthree\n']),
        ('line', ['one', 'two', 'three']),
        ('paragraph', ['one\ntwo', 'three']),
    ):
        data = documents(train=path, documents=unit)
        assert texts_of(data, data.train_source()) == wanted


def test_glob_patterns_are_read_in_name_order(tmp_path):
    for name in ('b', 'a', 'c'):
        write(tmp_path / f'{name}.txt', f'text {name}')
    data = documents(train=str(tmp_path / '*.txt'))
    assert texts_of(data, data.train_source()) == ['text a', 'text b', 'text c']


def test_evaluation_sets_by_name(tmp_path):
    train = write(tmp_path / 'train.txt', 'train ' * 50)
    valid = write(tmp_path / 'valid.txt', 'valid text = x')
    data = documents(train=train, evals=(f'valid={valid}',), tokenizer=Bpe(vocab_size=270))
    sources = data.eval_sources()
    assert list(sources) == ['valid'] and texts_of(data, sources['valid']) == ['valid text = x']
    with pytest.raises(ValueError, match='name=path'):
        TextFiles(train, evals=(valid,)).check()
    with pytest.raises(ValueError, match='twice'):
        TextFiles(train, evals=('a=x', 'a=y')).check()


def error_of(data):
    with pytest.raises(UserError) as caught:
        data.check()
        data.train_source()
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


def test_bad_files_end_in_one_clear_line(tmp_path):
    write(tmp_path / 'train.txt', 'hello')
    close = error_of(documents(train=str(tmp_path / 'trian.txt')))
    assert 'no such file' in close and "did you mean 'train.txt'" in close
    assert 'does not exist' in error_of(documents(train=str(tmp_path / 'none' / 'a.txt')))
    assert 'a folder' in error_of(documents(train=str(tmp_path)))
    assert 'is empty' in error_of(documents(train=write(tmp_path / 'b.txt', '')))
    assert 'only blank lines' in error_of(documents(train=write(tmp_path / 'c.txt', '\n \n')))
    assert 'only blank lines' in error_of(documents(train=write(tmp_path / 'c.txt.gz', '')))
    message = error_of(documents(train=write(tmp_path / 'd.txt', b'ok\ngr\xf6sse\n')))
    assert 'd.txt:2: byte 0xf6 at 2' in message and 'iconv -f ENCODING' in message
    message = error_of(
        documents(train=write(tmp_path / 'd.txt', b'ok\ngr\xf6sse\n'), documents='line')
    )
    assert 'd.txt:2: byte 0xf6 at 2' in message
    path = write(tmp_path / 'e.txt', 'short\n' + 'x' * 101 + '\n')
    assert 'e.txt:2' in error_of(documents(train=path, documents='line', line_limit=100))
    assert len(documents(train=path, documents='line', line_limit=101).train_source())
    whole = gzip.compress(b'text ' * 999)
    (tmp_path / 'f.txt.gz').write_bytes(whole[:-9])
    assert 'not a whole gzip file' in error_of(documents(train=str(tmp_path / 'f.txt.gz')))
    (tmp_path / 'g.txt.gz').write_bytes(b'plain')
    assert 'not a whole gzip file' in error_of(documents(train=str(tmp_path / 'g.txt.gz')))


def test_bad_jsonl_names_file_and_line(tmp_path):
    good = jsonl(['fine'])
    for line, part in (
        ('{"text": "half', 'not JSON'),
        ('[1, 2]', 'not an object'),
        ('{"txet": "a"}', "no field 'text'"),
        ('{"text": null}', "field 'text' is None, not text"),
        ('{"text": ["a"]}', 'not text'),
        ('{"text": "\\ud800"}', 'half a UTF-16'),
    ):
        message = error_of(documents(train=write(tmp_path / 'a.jsonl', good + line + '\n')))
        assert 'a.jsonl:2: ' in message and part in message


def test_a_missing_column_names_file_and_line(tmp_path):
    path = write(tmp_path / 'a.tsv', 'one\teins\ntwo zwei\n')
    message = error_of(pairs_of(train=path, tokenizer=Bytes()))
    assert 'a.tsv:2: has 1 column ' in message and 'column 1' in message
    message = error_of(pairs_of(train=write(tmp_path / 'a.txt', 'x'), tokenizer=Bytes()))
    assert 'plain text' in message


TEXT = 'Für Elise am Ufer\n' * 3
KINDS = {
    'UTF-16': TEXT.encode('utf-16'),
    'UTF-32': TEXT.encode('utf-32'),
    'is it UTF-16 without': b'h\0e\0y\0\n\0',
    'bzip2': bz2.compress(TEXT.encode()),
    'xz': lzma.compress(TEXT.encode()),
    'zstd': b'\x28\xb5\x2f\xfd\x04\x58' + bytes(8),
    'Parquet': b'PAR1\x15\x04\xff\x80',
    'PDF': b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n',
    'zip archive': b'PK\x03\x04\x14\0\0\0',
    'tar archive': b'a.txt'.ljust(257, b'\0') + b'ustar\x0000'.ljust(255, b'\0'),
    'from the encoding it is in': TEXT.encode('latin1'),
}


@pytest.mark.parametrize('ending', ['.txt', '.txt.gz', '.jsonl', '.tsv'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_file_that_is_no_utf8_text_is_named_by_what_it_is(tmp_path, kind, ending):
    message = error_of(documents(train=write(tmp_path / f'a{ending}', KINDS[kind])))
    assert kind in message and 'latin1' not in message


def test_gzip_is_known_by_its_first_bytes_and_by_its_name(tmp_path):
    for name in ('A.TXT.GZ', 'b.txt', 'c.JSONL.Gz'):
        text = '{"text": "one"}\n' if 'JSONL' in name else 'one'
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert texts_of(documents(train=str(tmp_path / name))) == ['one']
    twice = write(tmp_path / 'd.txt.gz', gzip.compress(b'one'))
    assert 'packed twice' in error_of(documents(train=twice))


@pytest.mark.parametrize('unit', ['file', 'line'])
def test_a_gzip_file_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch, unit):
    path = write(tmp_path / 'a.txt.gz', 'the same line\n' * 50_000)
    assert len(documents(train=path, documents=unit).train_source())
    monkeypatch.setattr(reading, 'UNPACKED', 10_000)
    message = error_of(documents(train=path, documents=unit, cache=str(tmp_path / 'new')))
    assert 'a.txt.gz: unpacks to more than' in message and 'gunzip' in message
    assert not files_in(tmp_path / 'new')
    mixed = ''.join(f'line {i * i}\n' for i in range(50_000))
    assert len(documents(train=write(tmp_path / 'b.txt.gz', mixed), documents=unit).train_source())


def test_lines_end_at_newlines_alone_and_marks_are_no_text(tmp_path):
    inside = '\x0b\x0c\x1c\x85\u2028\u2029'
    lines = [f'one{inside}uno', 'two', 'three']
    content = f'\ufeff{lines[0]}\r\n\ufefftwo\n\ufeff\nthree\n'
    path = write(tmp_path / 'a.txt', content)
    assert texts_of(documents(train=path, documents='line')) == lines
    assert texts_of(documents(train=path, documents='paragraph')) == ['\n'.join(lines[:2]), 'three']
    assert texts_of(documents(train=path)) == [content.replace('\ufeff', '')]
    path = write(tmp_path / 'a.tsv', f'\ufeffa{inside}b\tx\n')
    assert texts_of(documents(train=path)) == [f'a{inside}b']
    path = write(
        tmp_path / 'a.jsonl', '\ufeff' + json.dumps({'text': lines[0]}, ensure_ascii=False)
    )
    assert texts_of(documents(train=path)) == lines[:1]


# ---- the cache ------------------------------------------------------------------------------------


def files_in(folder):
    return sorted(p.name for p in folder.rglob('*') if p.is_file())


def test_a_second_start_reads_the_cache(tmp_path, cache, monkeypatch):
    path = write(tmp_path / 'a.jsonl', jsonl(DOCUMENTS * 9))
    data = documents(train=path, tokenizer=Bpe(vocab_size=280))
    first = data.train_source()
    before = files_in(cache)
    assert len(before) == 4 and not [name for name in before if 'tmp' in name]
    monkeypatch.setattr(corpus_lib, '_build', lambda *_: pytest.fail('tokenised again'))
    monkeypatch.setattr(FileRecords, 'located', lambda *_: pytest.fail('read again'))
    again = documents(train=path, tokenizer=Bpe(vocab_size=280)).train_source()
    np.testing.assert_array_equal(first.corpus.ids, again.corpus.ids)
    assert isinstance(again.corpus.ids, np.memmap) and again.corpus.size == first.corpus.size


def test_what_changes_the_text_or_the_tokens_changes_the_cache(tmp_path, cache):
    path = write(tmp_path / 'a.txt', 'aaaa\nbbbb\n')
    counts = []

    def start(**settings):
        source = documents(**{'train': path, 'tokenizer': Bytes(), **settings}).train_source()
        counts.append(len(list((cache / 'text').glob('*.json'))))
        return source.corpus

    assert start().size == 10
    start()
    start(length=7)
    start(packing=Masked(), length=9)
    assert counts == [1, 1, 1, 1]
    start(documents='line')
    assert counts[-1] == 2
    start(tokenizer=Bpe(vocab_size=262))
    start(tokenizer=Bpe(vocab_size=263))
    assert counts[-1] == 4
    stamp = os.stat(path)
    write(tmp_path / 'a.txt', 'aaaa\nbbbc\n')  # as long, and with the same time
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert Bytes().decode(start().ids) == 'aaaa\nbbbc\n'
    copy = write(tmp_path / 'copy.txt', 'aaaa\nbbbc\n')
    start(train=copy)
    assert counts[-1] == 5  # the same text under another name


def test_damaged_caches_are_made_again(tmp_path, cache):
    path = write(tmp_path / 'a.txt', 'some text ' * 100)
    wanted = np.array(documents(train=path).train_source().corpus.ids)
    for suffix in ('.ids.npy', '.offsets.npy', '.json'):
        (file,) = (cache / 'text').glob(f'*{suffix}')
        content = file.read_bytes()
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        for damage in (b'', content[: len(content) // 2], flipped):
            file.write_bytes(damage)
            np.testing.assert_array_equal(documents(train=path).train_source().corpus.ids, wanted)
        file.unlink()
        np.testing.assert_array_equal(documents(train=path).train_source().corpus.ids, wanted)


def test_large_ids_are_checked_by_their_ends(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(cached, 'CHECKED_WHOLE', 100)
    path = write(tmp_path / 'a.txt', 'some text ' * 100)
    assert documents(train=path).train_source().corpus.size == 1000
    (file,) = (cache / 'text').glob('*.ids.npy')
    file.write_bytes(file.read_bytes()[:-2] + b'zz')
    assert documents(train=path).train_source().corpus.ids[-1] == Bytes().sep


def test_an_error_leaves_nothing_behind(tmp_path, cache):
    path = write(tmp_path / 'a.jsonl', jsonl(DOCUMENTS) + 'broken\n')
    error_of(documents(train=path))
    assert not files_in(cache)
    (tmp_path / 'file').write_text('')
    for tokenizer in (Bytes(), Bpe(vocab_size=260)):
        data = documents(train=path, tokenizer=tokenizer, cache=str(tmp_path / 'file'))
        write(tmp_path / 'a.jsonl', jsonl(DOCUMENTS))
        assert 'cannot be written' in error_of(data)


def test_without_a_home_folder_one_line_asks_for_another(tmp_path, monkeypatch):
    for name in ('JAXDL_CACHE', 'JAXDL_DATA', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    path = write(tmp_path / 'a.txt', 'text')
    for tokenizer in (Bytes(), Bpe(vocab_size=260)):
        assert 'set JAXDL_CACHE' in error_of(documents(train=path, tokenizer=tokenizer))
    assert 'set JAXDL_CACHE' in error_of(Documents(source=TfdsText('lm1b')))
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'other'))
    assert len(documents(train=path).train_source())


def test_batches_of_any_size_give_the_same_corpus(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.jsonl', jsonl(DOCUMENTS * 20))
    whole = np.array(documents(train=path, cache=str(tmp_path / '1')).train_source().corpus.ids)
    monkeypatch.setattr(corpus_lib, 'BATCH', 20)
    parts = documents(train=path, cache=str(tmp_path / '2')).train_source().corpus
    np.testing.assert_array_equal(whole, parts.ids)
    assert (np.asarray(parts.ids)[parts.offsets] == Bytes().sep).all()


def test_more_than_65536_ids_need_four_bytes(tmp_path):
    path = write(tmp_path / 'a.txt', 'some text ' * 10)
    data = documents(train=path, tokenizer=Bpe(vocab_size=70_000))
    source = data.train_source()
    assert source.corpus.ids.dtype == np.uint32
    assert texts_of(data, source) == ['some text ' * 10]


# ---- the standard library -------------------------------------------------------------------------


def test_the_standard_library_is_split_by_file_name():
    train, valid = (dict(LibraryRecords(held_out=h).paths()) for h in (False, True))
    assert len(train) > 300 and not train.keys() & valid.keys()
    assert 0.01 < len(valid) / (len(train) + len(valid)) < 0.12
    names = train.keys() | valid.keys()
    assert {'dataclasses.py', 'json/decoder.py'} <= names
    assert not [n for n in names if 'site-packages' in n or '/test/' in f'/{n}' or '/tests/' in n]
    wider = dict(LibraryRecords(held_out=True, percent=20).paths())
    assert valid.keys() < wider.keys()  # a larger share keeps what was held out


def test_the_default_needs_no_file(monkeypatch):
    # A tenth of the library is enough here.
    whole = LibraryRecords.paths
    monkeypatch.setattr(LibraryRecords, 'paths', lambda self: whole(self)[::10])
    data = Documents(source=StandardLibrary(), length=128)
    source, valid = data.train_source(), data.eval_sources()['valid']
    batch = source.fetch(np.array([3, 0]))
    assert batch['tokens'].shape == (2, 128) and (batch['segments'] > 0).mean() > 0.9
    texts = [text for (text,) in data.eval_records()['valid']]
    assert valid.fetch(np.arange(len(valid)))['bytes'].sum() == sum(len(t.encode()) for t in texts)
    assert data.train_records().key() != data.eval_records()['valid'].key()


# ---- pairs ----------------------------------------------------------------------------------------

SENTENCES = [('Open the file.', 'Öffnen Sie die Datei.'), ('Yes', 'Ja'), ('No', 'Nein')] * 6


def tsv(pairs):
    return ''.join('\t'.join(pair) + '\tsource\n' for pair in pairs)


def test_pairs(tmp_path):
    train = write(tmp_path / 'train.tsv.gz', tsv(SENTENCES))
    valid = write(tmp_path / 'valid.tsv', tsv(SENTENCES[:5]))
    data = pairs_of(
        train=train,
        evals=(f'valid={valid}',),
        tokenizer=Bpe(vocab_size=300),
        source_length=32,
        target_length=32,
    )
    data.check()
    source, evals = data.train_source(), data.eval_sources()['valid']
    batch = source.fetch(np.arange(len(source)))
    assert len(source) < len(SENTENCES) and batch['source_segments'].max() > 1
    assert data.eval_texts('valid') == SENTENCES[:5]
    rows = evals.fetch(np.arange(5))
    assert rows['row'].tolist() == list(range(5)) and rows['target_segments'].max() == 1
    for i, (english, german) in enumerate(SENTENCES[:5]):
        assert data.tokenizer.decode(rows['source'][i]) == english
        assert data.tokenizer.decode(rows['targets'][i]) == german
    path = write(tmp_path / 'a.jsonl', '{"de": "Ja", "en": "Yes"}\n')
    other = pairs_of(train=path, fields=('en', 'de'), tokenizer=Bytes())
    row = other.train_source().fetch(np.zeros(1, int))
    assert Bytes().decode(row['source'][0]) == 'Yes' and Bytes().decode(row['targets'][0]) == 'Ja'


def test_pairs_that_are_too_long(tmp_path):
    train = write(tmp_path / 'a.tsv', tsv([('Yes', 'Ja'), ('No', 'x' * 50), ('y' * 60, 'Ja')]))
    settings = dict(train=train, tokenizer=Bytes(), source_length=20, target_length=20)
    message = error_of(pairs_of(**settings))
    assert 'a.tsv:2: 51 target tokens, more than target_length=20; 2 of 3 pairs' in message
    dropped = pairs_of(**settings, long='drop', evals=(f'v={train}',))
    assert dropped.train_source().pairs.tolist() == [0]
    assert len(dropped.eval_sources()['v']) == 3  # each exactly once, the long ones cut
    rows = dropped.eval_sources()['v'].fetch(np.arange(3))
    assert Bytes().decode(rows['targets'][1]) == 'x' * 20
    message = error_of(pairs_of(**{**settings, 'source_length': 2}, long='drop'))
    assert 'no training pair fits' in message


# ---- labels ---------------------------------------------------------------------------------------


def test_labelled_texts(tmp_path):
    path = write(tmp_path / 'a.tsv', 'a good film\tpos\nbad\tneg\n' + 'long ' * 20 + '\tpos\n')
    data = labelled(
        train=path, evals=(f'v={path}',), tokenizer=Bytes(), length=16, classes=('neg', 'pos')
    )
    rows = data.train_source().fetch(np.arange(3))
    assert rows['label'].tolist() == [1, 0, 1] and rows['lengths'].tolist() == [13, 5, 16]
    token = Bytes()
    assert rows['tokens'][1][:6].tolist() == [token.cls, *b'bad', token.sep, token.pad]
    assert (
        rows['tokens'][2][-1] == token.sep and token.decode(rows['tokens'][2]) == 'long long long'
    )
    assert data.eval_sources()['v'].fetch(np.array([2]))['label'].tolist() == [1]
    data.classes = ('neg', 'good')
    assert "a.tsv:1: label 'pos' is not one of" in error_of(data)
    path = write(tmp_path / 'b.jsonl', '{"text": "x", "label": 2}\n')
    assert "label '2'" in error_of(labelled(train=path, tokenizer=Bytes()))
    numbers = labelled(train=path, tokenizer=Bytes(), num_classes=3)
    assert numbers.train_source().fetch(np.zeros(1, int))['label'].tolist() == [2]


# ---- TFDS -----------------------------------------------------------------------------------------


@pytest.fixture
def tiny_tfds(tmp_path, monkeypatch):
    """A real TFDS set with text, a label and a translation, behind the name 'tiny'."""
    import tensorflow_datasets as tfds

    from jaxdl.data import prepare

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            text = tfds.features.Text()
            label = tfds.features.ClassLabel(names=['neg', 'pos'])
            features = {'text': text, 'label': label, 'en': text, 'de': text}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(20), 'test': self._generate_examples(5)}

        def _generate_examples(self, count):
            for i in range(count):
                yield (
                    i,
                    {'text': f'Größe {i}', 'label': i % 2, 'en': f'size {i}', 'de': f'Größe {i}'},
                )

    builder = Tiny(data_dir=tmp_path / 'tfds')
    monkeypatch.setattr(prepare, 'official_builder', lambda name, root, version='': builder)
    builder.download_and_prepare(file_format='array_record')
    return builder


def test_tfds_sets(tiny_tfds):
    source = TfdsText('tiny', evals=('test', 'half=train[50%:]'))
    data = Documents(source=source, tokenizer=Bpe(vocab_size=270))
    data.check()
    assert sorted(texts_of(data, data.train_source())) == sorted(f'Größe {i}' for i in range(20))
    assert list(data.eval_sources()) == ['test', 'half']
    assert len(texts_of(data, data.eval_sources()['half'])) == 10
    pairs = SentencePairs(source=TfdsText('tiny', fields=('en', 'de')), tokenizer=Bytes())
    assert ('size 3', 'Größe 3') in pairs.eval_texts('test')
    labels = LabelledTexts(source=TfdsText('tiny'), tokenizer=Bytes(), length=16)
    rows = labels.train_source().fetch(np.arange(20))
    for tokens, label in zip(rows['tokens'], rows['label'], strict=True):
        assert int(Bytes().decode(tokens).split()[1]) % 2 == label
    assert "no feature 'txt'" in error_of(Documents(source=TfdsText('tiny', fields=('txt',))))
    assert "no split 'tran'" in error_of(Documents(source=TfdsText('tiny', train='tran')))
    with pytest.raises(ValueError, match='same name'):
        TfdsText('tiny', evals=('a=test', 'a=train')).check()


def test_an_unknown_tfds_set():
    message = error_of(Documents(source=TfdsText('lm1bb')))
    assert "did you mean 'lm1b'" in message


# ---- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'data',
    [
        documents(),
        documents(train='x', length=1),
        documents(train='x', documents='word'),
        documents(train='x', columns=(-1,)),
        Documents(source=StandardLibrary(percent=0)),
        documents(train='x', length=64, packing=Packed(context=64)),
        documents(train='x', fields=('a', 'b')),
        pairs_of(train='x', columns=(1,)),
        LabelledTexts(source=StandardLibrary()),
        pairs_of(),
        pairs_of(train='x', long='cut'),
        pairs_of(train='x', target_length=1),
        labelled(),
        labelled(train='x', length=2),
        labelled(train='x', classes=('a', 'a')),
    ],
)
def test_wrong_settings_are_refused(data):
    with pytest.raises((ValueError, UserError)):
        data.source.check()
        data.check()


def test_masked_rows_need_room(tmp_path):
    path = write(tmp_path / 'a.txt', 'x')
    assert 'at least 8' in error_of(documents(train=path, packing=Masked(), length=5))


def test_configs_survive_json(tmp_path):
    from jaxdl.core import config

    data = documents(
        train='a', evals=('v=b',), tokenizer=Bpe(vocab_size=300), packing=Masked(seed=3)
    )
    assert config.from_json(config.to_json(data)) == data
    assert config.attribute_meanings(Documents).keys() >= {'source', 'tokenizer', 'length'}


# ---- what a run keeps -----------------------------------------------------------------------------


def test_the_files_of_a_run_may_move_but_not_change(tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    old.mkdir()
    for name in ('train', 'valid'):
        write(old / f'{name}.txt', f'{name} text ' * 30)

    def data(place, **settings):
        valid = f'v={place}/valid.txt'
        train = f'{place}/train.txt'
        return documents(train=train, evals=(valid,), tokenizer=Bpe(vocab_size=270), **settings)

    known = data(old).fingerprint()
    old.rename(new)
    assert data(new).fingerprint() == known and known.keys() == {'train', 'eval/v'}
    assert data(new).fingerprint(train=False) == {'eval/v': known['eval/v']}
    for name, set_name in (('train', 'train'), ('valid', 'eval/v')):
        kept = (new / f'{name}.txt').read_text()
        write(new / f'{name}.txt', kept + 'more')
        found = data(new).fingerprint()
        assert [n for n in known if found[n] != known[n]] == [set_name]
        write(new / f'{name}.txt', kept)
    assert data(new, documents='line').fingerprint()['train'] != known['train']


# ---- damage ---------------------------------------------------------------------------------------

JUNK = [b'', b'[]', b'null', b'{"ids": {"shape": "x"}}', b'\x93NUMPY\x01\0\xff\xff', b'[' * 100_000]


def damage(folder, rng):
    """Changes one file under `folder`: mostly one bit, of the first bytes as often as of all."""
    path = rng.choice(sorted(path for path in folder.rglob('*') if path.is_file()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(['flip'] * 20 + ['cut', 'grow', 'junk', 'gone'])
    if kind == 'flip':
        place = rng.randrange(min(len(content), 128) if rng.random() < 0.5 else len(content))
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 'cut':
        del content[rng.randrange(len(content)) :]
    elif kind == 'grow':
        content += rng.randbytes(9)
    elif kind == 'junk':
        content = rng.choice(JUNK)
    if kind == 'gone':
        path.unlink()
    else:
        path.write_bytes(content)


def check_text_caches(folder, tries):
    """Every start gives the same rows, and the start after it finds the caches whole."""
    path = write(folder / 'a.txt', 'some text with words in it, and words again. ' * 20)
    rng = random.Random(tries)

    def start():
        data = documents(train=path, tokenizer=Bpe(vocab_size=280), length=32)
        source = data.train_source()
        return source.fetch(np.arange(len(source)))

    wanted = start()
    for _ in range(tries):
        damage(folder / 'cache', rng)
        for name, values in start().items():
            np.testing.assert_array_equal(values, wanted[name])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus_lib, '_build', lambda *_: pytest.fail('is still broken'))
            patch.setattr(tok, '_learn', lambda *_: pytest.fail('is still broken'))
            start()


def check_stored_arrays(folder, tries):
    """The same for the arrays that are stored beside the shards of a TFDS set."""
    rng, numbers = random.Random(tries), np.random.default_rng(0)
    image = numbers.integers(0, 256, (9, 4, 4, 3), np.uint8)
    arrays = {'image': image, 'label': np.arange(9, dtype=np.int32)}
    shapes = {name: values.shape[1:] for name, values in arrays.items()}
    layout = records.RecordLayout(shapes, {name: values.dtype for name, values in arrays.items()})

    def start(read):
        found = records.stored_or_decoded(folder, 'train', layout, read, (9,))
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values)

    for _ in range(tries):
        start(lambda split: ArraySource(arrays))
        start(lambda split: pytest.fail('is still broken'))
        damage(folder / store.FOLDER, rng)


def check_kept_files(folder, tries):
    """What a run keeps is not made anew: it is as it was, or one line names the damaged file."""
    data = documents(
        train=write(folder / 'a.txt', 'some text ' * 20), tokenizer=Bpe(vocab_size=270)
    )
    data.fit()
    run, rng, refused = folder / 'run', random.Random(tries), 0
    for _ in range(tries):
        shutil.rmtree(run, ignore_errors=True)
        data.keep(run)
        damage(run, rng)
        try:
            data.keep(run)
            again = Bpe(vocab_size=270)
            again.load(run)
            assert again.fingerprint() == data.tokenizer.fingerprint()
        except UserError as error:
            assert str(run) in str(error) and len(str(error).splitlines()) <= 2
            refused += 1
    assert refused > tries / 2


CHECKS = {'texts': check_text_caches, 'arrays': check_stored_arrays, 'run': check_kept_files}


@pytest.mark.parametrize('kind', CHECKS)
def test_damaged_files(tmp_path, kind):
    CHECKS[kind](tmp_path, 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('kind', CHECKS)
def test_thousands_of_damaged_files(tmp_path, kind):
    CHECKS[kind](tmp_path, 900)
