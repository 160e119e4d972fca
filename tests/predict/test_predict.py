"""A trained run as a function: its predictions are what `evaluate` counts, to the last example."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdl import errors
from jaxdl.__main__ import main
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.evaluation import Evaluator
from jaxdl.core.feed import Feed
from jaxdl.core.program import Program
from jaxdl.errors import UserError
from jaxdl.predict.predictor import Predictor, load
from jaxdl.record.folder import Workdir
from jaxdl.run import loop as trainer
from jaxdl.run.open_run import Restored
from tests import small
from tests.test_language_configs import files, shrunk  # noqa: F401  (files is a fixture)

LANGUAGE = ['imdb_lstm', 'stdlib_lm', 'char_rnn', 'translate_small', 'bert_tiny', 'cifar_vit']


def opened(config, devices=2):
    """A run that was initialised and not trained: (predictor, evaluation sets, its metrics)."""
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:devices])
    source, sources = config.data.train_source(), config.data.eval_sources()
    feed = Feed(source, config.batch_size, mesh, placement='stream')
    program = Program(config, mesh, {k: v for k, v in feed.example.items() if k != 'id'})
    state = program.init(source.fetch(np.arange(config.batch_size)))
    (found,) = Evaluator(program, sources).run(state, program.place_hyper(), lambda: None)
    names = config.data.class_names()
    run = Restored(config, 0, state, program, sources, Workdir('unused'), names)
    return Predictor(run), sources, found


def mean(pair):
    return pair[0].sum() / pair[1].sum()


@pytest.mark.parametrize('name', LANGUAGE)
def test_predictions_are_those_that_evaluate_counts(name, files):  # noqa: F811
    config = shrunk(name, files)
    model, sources, found = opened(config)
    ((which, source),) = sources.items()
    values = model.sums(source)
    if 'probabilities' in values:
        labels = source.fetch(np.arange(len(source)))['label']
        assert (values['label'] == labels).mean() == pytest.approx(found[f'eval/{which}/accuracy'])
        nats = -np.log(values['probabilities'][np.arange(len(labels)), labels])
        np.testing.assert_allclose(nats.mean(), found[f'eval/{which}/loss'], rtol=1e-5)
        np.testing.assert_allclose(values['probabilities'].sum(-1), 1, rtol=1e-5)
        return
    for metric, value in values.items():
        if metric != 'token_count':
            key = 'loss' if metric == 'masked_loss' else metric
            np.testing.assert_allclose(mean(value), found[f'eval/{which}/{key}'], rtol=1e-5)


def test_texts_of_a_file_are_judged_one_by_one(files, tmp_path):  # noqa: F811
    """Each paragraph of the evaluation set as a line, and one of several rows: their sum is the set's."""
    config = shrunk('stdlib_lm', files)
    model, _, found = opened(config, devices=1)
    lines = (files / 'held-out.txt').read_text().split('\n\n')
    (tmp_path / 'lines.txt').write_text('\n'.join(lines))
    given = model.predict(str(tmp_path / 'lines.txt'))
    assert list(given['input'][:2]) == [f'{tmp_path}/lines.txt:{n}' for n in (1, 2)]
    assert len(given['loss']) == len(lines)
    total = (given['loss'] * given['token_count']).sum() / given['token_count'].sum()
    np.testing.assert_allclose(total, found['eval/valid/loss'], rtol=1e-5)
    size = sum(len(line) for line in lines)
    bits = (given['loss'] * given['token_count']).sum() / size / np.log(2)
    np.testing.assert_allclose(bits, found['eval/valid/bits_per_byte'], rtol=1e-5)

    long = ' '.join(lines)  # takes several rows
    (alone,) = model.predict([long])['token_count']
    assert alone > 3 * config.data.length
    again = model.predict([lines[3], long, lines[3]])
    assert again['token_count'].tolist() == [
        given['token_count'][3],
        alone,
        given['token_count'][3],
    ]
    np.testing.assert_allclose(again['loss'][[0, 2]], given['loss'][3], rtol=1e-5)


def test_other_forms_of_text(files, tmp_path):  # noqa: F811
    pairs, _, found = opened(shrunk('translate_small', files), devices=1)
    values = pairs.predict(str(files / 'held-out-pairs.tsv'))
    total = (values['loss'] * values['token_count']).sum() / values['token_count'].sum()
    np.testing.assert_allclose(total, found['eval/valid/loss'], rtol=1e-5)
    rows = [tuple(x.split('\t')) for x in (files / 'held-out-pairs.tsv').read_text().splitlines()]
    np.testing.assert_allclose(pairs.predict(rows)['loss'], values['loss'], rtol=1e-6)
    with pytest.raises(UserError, match=r'text 2: .* is not source and target'):
        pairs.predict([rows[0], 'alone'])
    with pytest.raises(UserError, match=r'source tokens, more than source_length=24'):
        pairs.predict([('word ' * 99, 'word')])


# ---- pictures, through the commands -----------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run on the digits with averaged weights, and pictures of its test set."""
    folder = tmp_path_factory.mktemp('digits')
    config = small.config(mesh=small.Mesh(data=1), ema=0.3, steps=6, eval_every=0)
    make = mesh_lib.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, 'make_mesh', lambda sizes: make(sizes, jax.devices()[:1]))
        trainer.train(config, str(folder / 'run'))
    rows = config.data.eval_sources()['test'].fetch(np.arange(20))
    (folder / 'pictures' / 'deep').mkdir(parents=True)
    for i, image in enumerate(rows['image'][..., 0]):
        place = folder / 'pictures' / ('deep' if i > 9 else '') / f'{i:02}.png'
        Image.fromarray(image).save(place)
    np.savez(folder / 'rows.npz', **rows)
    return folder


def test_a_folder_of_pictures_in_every_format(trained, tmp_path, capsys):
    run, pictures = trained / 'run', str(trained / 'pictures')
    for ending in ('csv', 'jsonl', 'npz'):
        command = ['', 'predict', f'--workdir={run}', pictures, f'--out={tmp_path}/out.{ending}']
        assert not main(command)
    assert '20 predictions of step 6' in capsys.readouterr().out
    arrays = np.load(tmp_path / 'out.npz')
    table = list(csv.DictReader((tmp_path / 'out.csv').open()))
    lines = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    rows = dict(np.load(trained / 'rows.npz'))
    from_rows = load(run).predict(rows['image'])
    np.testing.assert_allclose(arrays['probabilities'], from_rows['probabilities'], rtol=1e-5)
    assert arrays['classes'].tolist() == [str(i) for i in range(10)]
    for i, (row, line) in enumerate(zip(table, lines, strict=True)):
        place = f'{pictures}/{"deep/" * (i > 9)}{i:02}.png'
        assert row['input'] == line['input'] == arrays['input'][i] == place
        assert row['label'] == line['label'] == str(from_rows['label'][i])
        assert float(row['probability']) == pytest.approx(float(from_rows['probability'][i]))
        assert line['probabilities']['3'] == float(row['probabilities.3'])
    assert (
        main(['', 'predict', f'--workdir={run}', f'{trained}/rows.npz', '--batch_size=7']) is None
    )
    assert len(capsys.readouterr().out.splitlines()) == 21


def test_the_weights_are_the_averaged_ones(trained):
    model = load(trained / 'run')
    from jaxdl.run.open_run import open_run

    state = open_run(str(trained / 'run'), data=False).state
    averaged, last = model.weights['params'], state.params
    assert not jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), averaged, last))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: np.array_equal(a, b), averaged, state.ema['params'])
    )


def test_no_data_is_read(trained, monkeypatch):
    from jaxdl.data.images.tfds import Tfds

    for name in ('train_source', 'eval_sources', 'example', 'class_names'):
        monkeypatch.setattr(Tfds, name, None)
    model = load(trained / 'run')
    assert model.class_names == tuple(map(str, range(10)))
    image = np.load(trained / 'rows.npz')['image']
    whole = model.predict({'image': image[..., 0].astype(np.int64)})  # a harmless difference
    np.testing.assert_allclose(
        whole['probability'][4:5], model.predict(image[4:5])['probability'], rtol=1e-5
    )


def test_rows_without_what_the_model_needs_are_refused(trained):
    from jaxdl.data.arrays import ArraySource

    with pytest.raises(UserError, match=r'the model needs image .*; image is missing'):
        load(trained / 'run').over(ArraySource({'label': np.zeros(3, np.int32)}))


def test_a_picture_of_another_size_is_scaled_and_a_photo_turned(trained):
    model = load(trained / 'run')
    image = np.load(trained / 'rows.npz')['image'][3, ..., 0]
    large = Image.fromarray(image).resize((40, 40), Image.Resampling.NEAREST)
    wide = Image.new('L', (60, 40))
    wide.paste(large, (10, 0))
    wide.convert('RGB').save(trained / 'wide.png')
    turned = Image.fromarray(np.rot90(image))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    turned.save(trained / 'turned.png', exif=exif)
    expected = model.predict(image[None])['probabilities'][0]
    found = model.predict([trained / 'turned.png', trained / 'wide.png'])['probabilities']
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert found[1].argmax() == expected.argmax()


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (['nothing.png'], 'nothing.png: there is no such file'),
        (['run/config.json'], '1 of 1 pictures cannot be read: run/config.json: '),
        (['run/checkpoints'], 'there is no picture in it'),
        (['empty.npz'], 'the model needs image uint8[n, 8, 8, 1]; given are other'),
        (['wide.npz'], 'given is image [2, 9, 9, 1]'),
        (['float.npz'], 'given is image float64 from 0.0 to 0.0'),
        (['pictures', '--out=x.txt'], '--out=x.txt: the ending says the format'),
    ],
)
def test_wrong_input_is_named(trained, given, words, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    np.savez('empty.npz', other=np.zeros(3))
    np.savez('wide.npz', image=np.zeros((2, 9, 9, 1), np.uint8))
    np.savez('float.npz', image=np.zeros((2, 8, 8, 1)))
    assert errors.run(main, ['', 'predict', '--workdir=run', *given]) == 2
    message = capsys.readouterr().err
    assert words in message and len(message.splitlines()) <= 2


def test_tables_and_pictures_of_ones_own(trained, tmp_path):
    """Rows of a table that lacks its labels; a run on a folder of pictures."""
    from jaxdl.data.images.own import ImageFolder
    from jaxdl.data.tables.rows import ShippedTable
    from jaxdl.models.mlp import Mlp
    from jaxdl.tasks.classification import FeatureClassification

    data = ShippedTable('iris')
    config = small.config(
        model=Mlp(widths=(8,), num_classes=3), task=FeatureClassification(num_classes=3),
        data=data, batch_size=16,
    )  # fmt: skip
    model, sources, found = opened(config, devices=1)
    values = model.over(sources['test'])
    labels = sources['test'].in_memory()['label']
    assert (values['label'] == labels).mean() == pytest.approx(found['eval/test/accuracy'])
    columns = data.columns('test').values
    names = [name for name in columns if name != 'label']
    with (tmp_path / 'rows.csv').open('w') as file:
        writer = csv.writer(file)
        writer.writerow(names[::-1])
        writer.writerows(zip(*(columns[name] for name in names[::-1]), strict=True))
    given = model.predict(str(tmp_path / 'rows.csv'))
    np.testing.assert_allclose(given['probabilities'], values['probabilities'], rtol=1e-5)
    assert given['input'][1] == f'{tmp_path}/rows.csv row 2'  # counted from 1

    own = small.config(
        data=ImageFolder(folder=str(trained / 'pictures'), image_size=8, channels=1),
    )
    image = load(trained / 'run').row['image']
    inputs = own.data.inputs_from(str(trained / 'pictures'), {'image': image})
    rows = np.load(trained / 'rows.npz')['image']
    np.testing.assert_array_equal(inputs.source.fetch(np.arange(20))['image'], rows)


def test_importing_jaxdl_is_light():
    code = 'import jaxdl, sys; print(sorted({"jax", "numpy", "absl"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
