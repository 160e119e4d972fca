"""Somebody's own arrays, tables and texts, compared with scikit-learn and with each other."""

import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from sklearn import datasets
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from jaxdl.data.array_files import Arrays
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.tables.rows import ShippedTable, Table
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.labels import LabelledTexts
from jaxdl.data.text.sources import StandardLibrary, TextFiles
from jaxdl.data.text.tokenizers import Bytes
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'cache'))


def rows_of(source):
    return source.fetch(np.arange(len(source)))


# ---- arrays -------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4, 5), np.uint8)
WORDS = np.array(['fox', 'ant', 'fox', 'bee', 'ant', 'fox'])


def test_arrays_of_a_file(tmp_path):
    arrays = {'image': GREY, 'label': WORDS, 'weight': RNG.random(6), 'test/image': GREY[:2]}
    np.savez(tmp_path / 'a.npz', **arrays, **{'test/label': WORDS[[3, 0]]})
    data = Arrays(str(tmp_path / 'a.npz'))
    found = rows_of(data.train_source())
    assert data.class_names() == ('ant', 'bee', 'fox')
    assert found['label'].tolist() == [2, 0, 2, 1, 0, 2] and found['label'].dtype == np.int32
    np.testing.assert_array_equal(found['image'], GREY[..., None])
    np.testing.assert_array_equal(found['weight'], arrays['weight'].astype(np.float32))
    assert rows_of(data.eval_sources()['test'])['label'].tolist() == [1, 2]


def test_arrays_under_other_names(tmp_path):
    x, y = RNG.random((8, 3)), np.array([[7], [-1], [7], [40], [40], [7], [-1], [7]])
    np.savez(tmp_path / 'a.npz', x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:], z=1)
    names = ('features=x_train', 'label=y_train', 'test/features=x_test', 'test/label=y_test')
    data = Arrays(str(tmp_path / 'a.npz'), names=names)
    assert data.class_names() == ('-1', '7', '40')
    assert rows_of(data.train_source())['label'].tolist() == [1, 0, 1, 2, 2, 1]
    test = rows_of(data.eval_sources()['test'])
    assert test['label'].tolist() == [0, 1] and test['features'].dtype == np.float32
    with pytest.raises(UserError, match=r"no array 'x_tain', it has .*did you mean 'x_train'"):
        Arrays(str(tmp_path / 'a.npz'), names=('image=x_tain',)).train_source()


def test_a_folder_of_arrays_is_only_mapped(tmp_path):
    (tmp_path / 'valid').mkdir()
    for name, rows in (('', slice(4)), ('valid', slice(4, 6))):
        np.save(tmp_path / name / 'image.npy', GREY[rows])
        np.save(tmp_path / name / 'label.npy', WORDS[rows])
    whole, mapped = Arrays(str(tmp_path)), Arrays(str(tmp_path), in_memory_bytes=0)
    source = pickle.loads(pickle.dumps(mapped.train_source()))
    assert source.in_memory() is None and whole.train_source().in_memory() is not None
    for name, value in rows_of(whole.train_source()).items():
        np.testing.assert_array_equal(rows_of(source)[name], value)
    assert list(mapped.eval_sources()) == ['valid'] and whole.fingerprint() == mapped.fingerprint()


def test_arrays_of_a_program_are_kept_by_their_hash():
    one, two = (Arrays.of({'image': GREY, 'label': WORDS}, valid=Valid(0.3)) for _ in range(2))
    assert one == two and one.valid.share == 0.3
    assert Arrays.of({'image': GREY + 1, 'label': WORDS}).file != one.file


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'image': GREY, 'label': WORDS[:5]}, '6 image, 5 label'),
        ({'image': GREY.astype(object), 'label': WORDS}, 'image.npy: cannot be read'),
        ({'image': GREY, 'label': RNG.random(6)}, r'labels are float64 \[6\]'),
        ({'image': GREY, 'text': WORDS}, "'text' is <U3, which fits no batch"),
        ({'test/image': GREY}, 'holds no training set, only test'),
        ({'ids': np.array([2**40])}, 'beyond 32 bits'),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(UserError, match=message) as caught:
        Arrays(str(tmp_path / 'a.npz')).train_source()
    assert 'a.npz' in str(caught.value)


def test_no_arrays(tmp_path):
    (tmp_path / 'a.npz').write_text('x')
    for file, message in (('a.npz', 'no .npz file'), ('b.npz', 'no such file'), ('.', 'no arrays')):
        with pytest.raises(UserError, match=message):
            Arrays(str(tmp_path / file)).train_source()


# ---- tables -------------------------------------------------------------------------------------------


def write_table(path, table: dict) -> str:
    kind, rows = path.suffix, pa.table(table)
    if kind == '.parquet':
        parquet.write_table(rows, path)
    elif kind == '.feather':
        feather.write_feather(rows, str(path))
    elif kind == '.jsonl':
        path.write_text('\n'.join(json.dumps(row) for row in rows.to_pylist()))
    else:
        separator = '\t' if '.tsv' in path.name else ','
        lines = [separator.join(table)]
        lines += [separator.join(map(str, row.values())) for row in rows.to_pylist()]
        text = '\n'.join(lines).encode()
        path.write_bytes(gzip.compress(text) if kind == '.gz' else text)
    return str(path)


ROWS = {
    'height': RNG.normal(50, 9, 40).round(3).tolist(),
    'colour': RNG.choice(['red', 'blue', 'green'], 40).tolist(),
    'count': RNG.integers(0, 1000, 40).tolist(),
    'kind': RNG.choice(['b', 'a'], 40).tolist(),
}


@pytest.mark.parametrize(
    'name', ['t.csv', 't.csv.gz', 't.tsv', 't.jsonl', 't.parquet', 't.feather']
)
def test_features_equal_scikit_learn(tmp_path, name):
    data = Table(write_table(tmp_path / name, ROWS), label='kind', valid=Valid(0.25))
    data.check()
    stay, held = data.valid.ids(40)
    numbers = np.stack([ROWS['height'], ROWS['count']], 1)
    scaled = StandardScaler().fit(numbers[stay]).transform(numbers)
    colours = OneHotEncoder(sparse_output=False).fit_transform(np.array(ROWS['colour'])[:, None])
    right = np.concatenate([scaled[:, :1], colours, scaled[:, 1:]], 1)
    for source, ids in ((data.train_source(), stay), (data.eval_sources()['valid'], held)):
        found = rows_of(source)
        np.testing.assert_allclose(found['features'], right[ids], atol=1e-5)
        assert [data.class_names()[i] for i in found['label']] == [ROWS['kind'][i] for i in ids]


def test_a_run_keeps_classes_and_scales(tmp_path):
    """Another table is read with the numbers of the table that a run was trained on."""
    first = Table(write_table(tmp_path / 'a.csv', ROWS), label='kind')
    first.keep(tmp_path / 'run')
    first.keep(tmp_path / 'run')
    other = {**ROWS, 'height': [0.0] * 40, 'kind': ['b'] * 40, 'colour': ['mauve'] * 40}
    second = Table(write_table(tmp_path / 'b.csv', other), label='kind')
    second.recall(tmp_path / 'run')
    found = rows_of(second.train_source())
    heights = np.array(ROWS['height'])
    np.testing.assert_allclose(found['features'][:, 0], -heights.mean() / heights.std(), rtol=1e-5)
    assert not found['features'][:, 1:4].any() and set(found['label']) == {1}
    fresh = Table(str(tmp_path / 'a.csv'), label='kind', features=('height',))
    with pytest.raises(UserError, match='other classes or columns'):
        fresh.keep(tmp_path / 'run')


@pytest.mark.parametrize(
    'change, fields, message',
    [
        ({}, {'label': 'knd'}, "no column 'knd', only .*did you mean 'kind'"),
        ({}, {'features': ('hight',)}, "no column 'hight'"),
        ({'height': [*ROWS['height'][:39], None]}, {}, "row 40: column 'height' is empty"),
        ({'kind': [*ROWS['kind'][:39], None]}, {}, 'row 40: the label is missing'),
        ({'kind': ROWS['height']}, {}, 'is no whole number and no text'),
        ({'colour': [[1]] * 40}, {}, 'type list<.*leave it out'),
        ({'colour': [f'c{i}' for i in range(40)] * 3}, {'three': 3}, '120 different texts'),
    ],
)
def test_tables_that_do_not_fit(tmp_path, change, fields, message):
    if fields.pop('three', 0):
        change = {'colour': [f'c{i}' for i in range(120)]}
        table = {**{name: values * 3 for name, values in ROWS.items()}, **change}
    else:
        table = {**ROWS, **change}
    data = Table(write_table(tmp_path / 't.parquet', table), **{'label': 'kind', **fields})
    with pytest.raises(UserError, match=message):
        data.train_source()


def test_missing_values_where_it_is_said(tmp_path):
    table = {**ROWS, 'height': [None, *ROWS['height'][1:]], 'colour': [None, *ROWS['colour'][1:]]}
    path = write_table(tmp_path / 't.parquet', table)
    data = Table(path, label='kind', missing='mean')
    assert not rows_of(data.train_source())['features'][0, :4].any()


def test_a_damaged_csv_names_the_row(tmp_path):
    path = write_table(tmp_path / 't.csv', ROWS)
    with open(path, 'a') as file:
        file.write('\n1,2\n')
    with pytest.raises(UserError, match=r't.csv: cannot be read as csv \(.*#42'):
        Table(path, label='kind').train_source()


@pytest.mark.parametrize('name', ['iris', 'wine', 'breast_cancer'])
def test_shipped_tables_are_those_of_scikit_learn(name):
    right = getattr(datasets, f'load_{name}')()
    data = ShippedTable(name)
    train, test = rows_of(data.train_source()), rows_of(data.eval_sources()['test'])
    held = np.arange(len(right.target)) % 5 == 4
    scaled = StandardScaler().fit(right.data[~held]).transform(right.data)
    np.testing.assert_allclose(train['features'], scaled[~held], atol=1e-4)
    np.testing.assert_allclose(test['features'], scaled[held], atol=1e-4)
    names = np.array(data.class_names())[np.concatenate([train['label'], test['label']])]
    target = np.concatenate([right.target[~held], right.target[held]])
    assert names.tolist() == right.target_names[target].tolist()


# ---- texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['t.parquet', 't.feather'])
def test_texts_of_tables_equal_those_of_json_lines(tmp_path, name):
    table = {'text': ['ein Fuchs', 'deux\nlignes', 'ž'], 'label': [1, 0, 1]}
    pattern = write_table(tmp_path / name, table)
    other = write_table(tmp_path / 't.jsonl', table)
    found, right = (
        LabelledTexts(source=TextFiles(train=path), tokenizer=Bytes(), length=24).train_source()
        for path in (pattern, other)
    )
    for key, value in rows_of(right).items():
        np.testing.assert_array_equal(rows_of(found)[key], value)
    with pytest.raises(UserError, match=r"has no column 'txt', .*did you mean 'text'"):
        source = TextFiles(train=pattern, fields=('txt', 'label'))
        LabelledTexts(source=source, tokenizer=Bytes()).train_source()


# ---- what is held out -----------------------------------------------------------------------------------


def test_sides_depend_on_the_seed_and_the_place_alone():
    stay, held = Valid(0.2, seed=3).ids(5000)
    assert sorted([*stay, *held]) == list(range(5000)) and 900 < len(held) < 1100
    fewer = Valid(0.2, seed=3).ids(1000)[1]
    np.testing.assert_array_equal(held[held < 1000], fewer)
    assert not np.array_equal(fewer, Valid(0.2, seed=4).ids(1000)[1])
    sides = Valid(0.2, seed=3).sides()
    many = [next(sides) for _ in range(70_000)]
    np.testing.assert_array_equal(np.flatnonzero(many), Valid(0.2, seed=3).ids(70_000)[1])
    with pytest.raises(UserError, match='holds out 0 of 3 training examples'):
        Valid(0.001).ids(3)


def test_held_out_examples_of_a_published_set():
    whole = rows_of(Tfds('digits').train_source())
    data = Tfds('digits', valid=Valid(0.1))
    stay, held = Valid(0.1).ids(len(whole['label']))
    sets = data.eval_sources()
    assert list(sets) == ['test', 'valid']
    for source, ids in ((data.train_source(), stay), (sets['valid'], held)):
        np.testing.assert_array_equal(rows_of(source)['image'], whole['image'][ids])
    with pytest.raises(UserError, match=r"has an evaluation set 'valid' already; give .*share=0"):
        Tfds('digits', evals=('valid=test',), valid=Valid(0.1)).eval_sources()


def test_held_out_texts_are_whole_records(tmp_path):
    texts = [f'text {i}' for i in range(60)]
    (tmp_path / 't.txt').write_text('\n'.join(texts))
    source = TextFiles(train=str(tmp_path / 't.txt'), documents='line')
    data = Documents(source=source, tokenizer=Bytes(), length=16, valid=Valid(0.3, seed=2))
    stay, held = Valid(0.3, seed=2).ids(60)
    assert [text for (text,) in data.train_records()] == [texts[i] for i in stay]
    assert [text for (text,) in data.eval_records()['valid']] == [texts[i] for i in held]
    prints = data.fingerprint()
    assert list(prints) == ['eval/valid', 'train'] and len(set(prints.values())) == 2
    assert len(data.train_source()) and len(data.eval_sources()['valid'])
    library = Documents(source=StandardLibrary(), tokenizer=Bytes(), valid=Valid(0.3))
    with pytest.raises(UserError, match="has an evaluation set 'valid' already"):
        library.eval_records()
