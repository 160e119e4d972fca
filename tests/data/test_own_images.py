"""Somebody's own pictures: every way in gives the same rows; what is wrong is named."""

import io
import json
import pickle
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from jaxdl.data.images import encoded, own
from jaxdl.data.images.own import ImageFolder, ImageTable
from jaxdl.data.images.pictures import open_picture
from jaxdl.data.records import fitted
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError

SIZE = 8
LABELS = ['2', '10', '2', '-3', '10', '2', '2', '10', '-3', '2']
ORDER = ('-3', '2', '10')  # by number, not by their characters
NUMBERS = [ORDER.index(label) for label in LABELS]


def image_of(row: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (size, size, 3), np.uint8)


def png(array: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


IMAGES = np.stack([image_of(row) for row in range(len(LABELS))])
CODED = [png(image) for image in IMAGES]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'cache'))


def write_folder(root, rows=slice(None)) -> None:
    for row in list(range(len(LABELS)))[rows]:
        folder = root / LABELS[row]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{row}.png').write_bytes(CODED[row])


def write_table(root, kind: str) -> str:
    """Writes the rows in one of the formats; returns the pattern to give."""
    root.mkdir(exist_ok=True)
    names = [f'files/{row}.png' for row in range(len(LABELS))]
    table = pa.table({'image': CODED, 'label': list(map(int, LABELS))})
    if kind in ('csv', 'jsonl'):
        write_files(root / 'files')
        if kind == 'csv':
            rows = ['image,label', *map(','.join, zip(names, LABELS, strict=True))]
            (root / 'rows.csv').write_text('\n'.join(rows))
        else:
            rows = [
                json.dumps({'image': n, 'label': x}) for n, x in zip(names, LABELS, strict=True)
            ]
            (root / 'rows.jsonl').write_text('\n'.join(rows))
    elif kind == 'parquet':
        for part in range(2):  # in two files, each of several row groups
            rows = table.slice(part * 5, 5)
            parquet.write_table(rows, root / f'train-0000{part}.parquet', row_group_size=2)
        return str(root / 'train-*.parquet')
    elif kind == 'arrow':
        with pa.ipc.new_file(str(root / 'rows.arrow'), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif kind == 'hub':
        return str(write_hub(root / 'train'))
    elif kind == 'tar':
        with tarfile.open(root / 'rows.tar', 'w') as tar:
            for row, data in enumerate(CODED):
                for ending, part in (('png', data), ('cls', LABELS[row].encode())):
                    entry = tarfile.TarInfo(f'./{row:03}.{ending}')
                    entry.size = len(part)
                    tar.addfile(entry, io.BytesIO(part))
    return str(root / f'rows.{kind}')


def write_files(folder) -> None:
    folder.mkdir()
    for row, data in enumerate(CODED):
        (folder / f'{row}.png').write_bytes(data)


def write_hub(folder):
    """The layout of `Dataset.save_to_disk`: streams of Arrow, pictures with paths, named classes."""
    folder.mkdir()
    names = ['ten', 'minus three', 'two']
    stored = [names.index({'2': 'two', '10': 'ten', '-3': 'minus three'}[x]) for x in LABELS]
    pictures = [{'bytes': data, 'path': f'{row}.png'} for row, data in enumerate(CODED)]
    features = {
        'image': {'_type': 'Image'},
        'label': {'names': names, '_type': 'ClassLabel'},
    }
    about = json.dumps({'info': {'features': features}})
    table = pa.table({'image': pictures, 'label': stored})
    table = table.replace_schema_metadata({'huggingface': about})
    files = [{'filename': f'data-0000{part}-of-00002.arrow'} for part in range(2)]
    for part, file in enumerate(files):
        with pa.ipc.new_stream(str(folder / file['filename']), table.schema) as writer:
            writer.write_table(table.slice(part * 5, 5), max_chunksize=2)
    (folder / 'state.json').write_text(json.dumps({'_data_files': files}))
    return folder


def rows_of(source, ids=None):
    return source.fetch(np.arange(len(source)) if ids is None else np.asarray(ids))


# ---- every way in -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet', 'arrow', 'hub', 'tar'])
@pytest.mark.parametrize('memory', [2**31, 0])
def test_every_format_gives_the_same_rows(tmp_path, kind, memory):
    pattern = write_table(tmp_path / 'data', kind)
    columns = {'image': 'png;jpg', 'label': 'cls'} if kind == 'tar' else {}
    data = ImageTable(train=pattern, image_size=SIZE, in_memory_bytes=memory, **columns)
    data.check()
    source = data.train_source()
    assert (source.in_memory() is None) is (memory == 0)
    source = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    found = rows_of(source)
    np.testing.assert_array_equal(found['image'], IMAGES)
    names = data.class_names()
    assert names == (('ten', 'minus three', 'two') if kind == 'hub' else ORDER)
    written = {'two': '2', 'ten': '10', 'minus three': '-3'}
    assert [written.get(names[i], names[i]) for i in found['label']] == LABELS
    some = rows_of(source, [7, 0, 7])
    np.testing.assert_array_equal(some['image'], IMAGES[[7, 0, 7]])
    assert data.example().keys() == found.keys()


def test_a_folder_of_classes(tmp_path):
    write_folder(tmp_path / 'data')
    (tmp_path / 'data' / '2' / 'deeper').mkdir()
    (tmp_path / 'data' / '2' / 'deeper' / 'x.png').write_bytes(CODED[3])
    (tmp_path / 'data' / '.hidden').write_text('')
    data = ImageFolder(str(tmp_path / 'data'), image_size=SIZE)
    found = rows_of(data.train_source())
    assert data.class_names() == ORDER and data.eval_sources() == {}
    order = [row for label in sorted(set(LABELS)) for row in range(10) if LABELS[row] == label]
    np.testing.assert_array_equal(found['image'], IMAGES[[*order, 3]])
    np.testing.assert_array_equal(found['label'], [*(NUMBERS[row] for row in order), 1])


def test_folders_of_train_and_evaluation_sets(tmp_path):
    write_folder(tmp_path / 'train', slice(5))
    write_folder(tmp_path / 'val', slice(5, 6))  # a class that is missing there keeps its number
    write_folder(tmp_path / 'test', slice(7, 9))
    data = ImageFolder(str(tmp_path), image_size=SIZE)
    sources = data.eval_sources()
    assert list(sources) == ['val', 'test'] and len(data.train_source()) == 5
    assert rows_of(sources['val'])['label'].tolist() == [1]
    assert sorted(rows_of(sources['test'])['label'].tolist()) == [0, 2]
    (tmp_path / 'test' / '11').mkdir()
    (tmp_path / 'test' / '11' / 'x.png').write_bytes(CODED[0])
    own._listed.cache_clear()
    with pytest.raises(
        UserError, match=r"11/x.png: label '11' is none of the 3 classes \(-3, 2, 10\)"
    ):
        data.eval_sources()


def test_decoded_once_and_again_when_a_file_changed(tmp_path, monkeypatch):
    write_folder(tmp_path / 'data')
    data = ImageFolder(str(tmp_path / 'data'), image_size=SIZE)
    assert data.fingerprint() == {'train': ''}
    first = rows_of(data.train_source())
    known = data.fingerprint()
    assert known['train']
    decode = encoded.own_picture
    monkeypatch.setattr(encoded, 'own_picture', lambda *_: pytest.fail('it was decoded again'))
    np.testing.assert_array_equal(rows_of(data.train_source())['image'], first['image'])
    (array,) = (tmp_path / 'cache' / 'images').glob('*.npy')
    kept = array.read_bytes()
    array.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # damage in the cache
    monkeypatch.setattr(encoded, 'own_picture', decode)
    np.testing.assert_array_equal(rows_of(data.train_source())['image'], first['image'])
    path = next((tmp_path / 'data' / '10').iterdir())
    path.write_bytes(png(255 - image_of(0)))
    assert not np.array_equal(rows_of(data.train_source())['image'], first['image'])
    assert data.fingerprint() != known


def test_orientation_and_size(tmp_path):
    """Turned as EXIF says, the shorter side scaled, the middle cut out."""
    tall = np.zeros((24, 16, 3), np.uint8)
    tall[:12] = (255, 0, 0)  # red above, blue below
    tall[12:] = (0, 0, 255)
    for orientation, turn in ((1, 0), (3, 2), (6, 1), (8, 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.rot90(tall, turn)  # as the camera was held
        data = png(stored, 'JPEG', quality=100, subsampling=0, exif=exif)
        found = encoded.own_picture(data, (8, 8, 3)).astype(int)
        np.testing.assert_allclose(found[:3], np.broadcast_to([255, 0, 0], (3, 8, 3)), atol=6)
        np.testing.assert_allclose(found[5:], np.broadcast_to([0, 0, 255], (3, 8, 3)), atol=6)
    deep = Image.fromarray(np.full((9, 9), 257 * 7, np.uint16))
    stream = io.BytesIO()
    deep.save(stream, 'PNG')
    assert (encoded.own_picture(stream.getvalue(), (4, 4, 1)) == 7).all()


def test_a_large_jpeg_is_decoded_small_but_not_worse():
    smooth = Image.fromarray(image_of(0, 16)).resize((512, 384), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    smooth.save(stream, 'JPEG', quality=95)
    # An eighth, so that the shorter side keeps twice 24.
    assert open_picture(stream.getvalue(), 3, least=24).size == (64, 48)
    found = encoded.own_picture(stream.getvalue(), (24, 24, 3)).astype(float)
    right = fitted(open_picture(stream.getvalue(), 3), (24, 24, 3)).astype(float)
    assert np.abs(found - right).mean() < 2 < right.std() / 10


def test_shards_written_by_tar(tmp_path):
    """GNU tar writes the shard; labels come from a field of a JSON member."""
    for row in range(3):
        (tmp_path / f'{row}.png').write_bytes(CODED[row])
        (tmp_path / f'{row}.json').write_text(json.dumps({'kind': f'k{row % 2}'}))
    names = sorted(path.name for path in tmp_path.glob('*.*'))
    subprocess.run(['tar', 'cf', 'a.tar', *names], cwd=tmp_path, check=True)
    data = ImageTable(
        train=str(tmp_path / '*.tar'), image='png', label='json/kind', image_size=SIZE
    )
    found = rows_of(data.train_source())
    np.testing.assert_array_equal(found['image'], IMAGES[:3])
    assert found['label'].tolist() == [0, 1, 0] and data.class_names() == ('k0', 'k1')


# ---- what is held out -----------------------------------------------------------------------------------


@pytest.mark.parametrize('memory', [2**31, 0])
def test_held_out_pictures(tmp_path, memory):
    write_folder(tmp_path / 'data')
    whole = rows_of(ImageFolder(str(tmp_path / 'data'), image_size=SIZE).train_source())
    data = ImageFolder(
        str(tmp_path / 'data'), image_size=SIZE, valid=Valid(0.4, seed=1), in_memory_bytes=memory
    )
    train, valid = rows_of(data.train_source()), rows_of(data.eval_sources()['valid'])
    stay, held = Valid(0.4, seed=1).ids(10)
    assert sorted([*stay, *held]) == list(range(10)) and len(held) and len(stay)
    for rows, ids in ((train, stay), (valid, held)):
        for name in rows:
            np.testing.assert_array_equal(rows[name], whole[name][ids])


# ---- what is wrong --------------------------------------------------------------------------------------


def test_broken_files_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / '2' / '0.png').write_bytes(CODED[0][:60])
    (tmp_path / '10' / 'notes.txt').write_text('not a picture')
    source = lambda: ImageFolder(str(tmp_path), image_size=SIZE).train_source()  # noqa: E731
    with pytest.raises(
        UserError, match=r'(?s)2 of 11 pictures .*10/notes.txt: .*2/0.png: .*replace'
    ):
        source()
    (tmp_path / '10' / 'notes.txt').unlink()
    (tmp_path / '2' / '0.png').write_bytes(b'')
    own._listed.cache_clear()
    with pytest.raises(UserError, match=r'1 of 10 pictures cannot be read: .*2/0.png: '):
        source()


def test_a_table_with_a_broken_picture_or_label(tmp_path):
    def read(images, labels, **fields):
        path = tmp_path / 'rows.parquet'
        parquet.write_table(pa.table({'image': images, 'label': labels}), path)
        return ImageTable(train=str(path), image_size=SIZE, **fields).train_source()

    with pytest.raises(UserError, match=r'rows.parquet row 1: column .image. holds NoneType'):
        read([CODED[0], None], [0, 1])
    with pytest.raises(UserError, match=r'rows.parquet row 1: the label is missing'):
        read(CODED[:2], ['a', None])
    with pytest.raises(UserError, match=r'row 0: the label is 1.0; it must be'):
        read(CODED[:2], [1.0, 0.5])
    with pytest.raises(UserError, match=r"no column 'lable', it has .*did you mean 'label'"):
        read(CODED[:2], [0, 1], label='lable')
    (tmp_path / 'cut.parquet').write_bytes((tmp_path / 'rows.parquet').read_bytes()[:-9])
    with pytest.raises(UserError, match=r'cut.parquet: cannot be read as parquet'):
        ImageTable(train=str(tmp_path / 'cut.parquet')).train_source()


def test_labels_without_a_file(tmp_path):
    write_table(tmp_path / 'data', 'csv')
    (tmp_path / 'data' / 'files' / '4.png').unlink()
    with pytest.raises(UserError, match=r'files/4.png \(rows.csv row 4\): there is no such file'):
        ImageTable(train=str(tmp_path / 'data' / 'rows.csv')).train_source()


def test_shards_that_are_no_shards(tmp_path):
    path = write_table(tmp_path / 'data', 'tar')
    table = ImageTable(train=path, image='jpg', label='cls')
    with pytest.raises(UserError, match=r'rows.tar: ./000 has no member .jpg, only .png, .cls'):
        table.train_source()
    whole = (tmp_path / 'data' / 'rows.tar').read_bytes()
    (tmp_path / 'cut.tar').write_bytes(whole[:700])
    with pytest.raises(UserError, match=r'cut.tar'):
        ImageTable(train=str(tmp_path / 'cut.tar'), image='png', label='cls').train_source()


@pytest.mark.parametrize(
    'files, message',
    [
        ([], 'holds nothing; it needs a sub-folder'),
        (['1.png'], 'holds 1 files but no folder'),
        (['a/1.png', 'loose.png'], 'loose.png: lies in no folder of a class'),
    ],
)
def test_folders_that_are_no_classes(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CODED[0])
    with pytest.raises(UserError, match=message):
        ImageFolder(str(tmp_path)).class_names()


def test_folders_of_a_hub_are_given_split_by_split(tmp_path):
    write_hub(tmp_path / 'train')
    (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r'holds several splits; give one, as .*/train'):
        ImageTable(train=str(tmp_path)).train_source()
    (tmp_path / 'train' / 'data-00001-of-00002.arrow').unlink()
    with pytest.raises(UserError, match=r'lacks data-00001-of-00002.arrow'):
        ImageTable(train=str(tmp_path / 'train')).train_source()
