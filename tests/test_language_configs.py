"""Every language config (and ViT): rows fit the model, and shrunk it trains the same on any devices."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import errors
from jaxdl.core import config as config_lib
from jaxdl.core import flags
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Checkpoint
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.labels import LabelledTexts
from jaxdl.data.text.pairs import SentencePairs
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bytes
from jaxdl.errors import UserError
from jaxdl.record.folder import Workdir
from jaxdl.run import loop as trainer
from jaxdl.tasks.masked_lm import MaskedLM
from tests import small

ROOT = Path(__file__).resolve().parent.parent
WORDS = 'the a cat dog sat ran on under mat house and then slowly quickly'.split()
VOCAB = 300

CONFIGS = [
    'stdlib_lm',
    'char_rnn',
    'char_rnn:gru',
    'char_rnn:files',
    'char_rnn:files_gru',
    'lm_small',
    'lm_small:bytes',
    'gpt2_124m',
    'bert_tiny',
    'bert_tiny:files',
    'bert_base',
    'bert_base:next_sentence',
    'bert_large',
    'bert_large:next_sentence',
    'wmt_base',
    'wmt_big',
    'translate_small',
    'translate_small:full',
    'imdb_lstm',
    'imdb_lstm:files',
    'cifar_vit',
]


def load(name):
    stem, _, variant = name.partition(':')
    return flags.load_config(
        str(ROOT / 'configs' / f'{stem}.py') + (f':{variant}' if variant else '')
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_the_config_agrees_with_itself(name):
    """Model, task and tokenizer have one vocabulary, and the model takes the set's rows as they are."""
    config = load(name)
    if getattr(getattr(config.data, 'source', None), 'train', 'named') == '':
        with pytest.raises(UserError, match=r'--config.data.source.train=FILE'):
            config_lib.check(config)
    else:
        config_lib.check(config)
    if name == 'cifar_vit':
        row = {'image': np.zeros((32, 32, 3), np.uint8), 'label': np.zeros((), np.int32)}
    else:
        config.data.check_with(config.model, config.task)
        row = config.data.example()
    batch = {key: jnp.asarray(np.repeat(value[None], 8, 0)) for key, value in row.items()}

    def loss():
        inputs = config.task.augment(batch, jax.random.key(0))
        named = config.task.inputs(inputs)
        variables = config.model.init(jax.random.key(0), **named, train=False)
        outputs = config.model.apply(variables, **named, train=False)
        return config.task.metrics(outputs, inputs)['loss'].value()

    assert jax.eval_shape(loss).shape == ()


# ---- shrunk runs ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Texts, pairs and labels, and a cache for what is made of them."""
    folder = tmp_path_factory.mktemp('text')
    rng = np.random.default_rng(0)
    lines = [' '.join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(150)]
    (folder / 'text.txt').write_text('\n\n'.join(lines))
    (folder / 'held-out.txt').write_text('\n\n'.join(lines[:20]))
    pairs = [f'{line}\t{" ".join(line.split()[::-1])}\n' for line in lines]
    (folder / 'pairs.tsv').write_text(''.join(pairs))
    (folder / 'held-out-pairs.tsv').write_text(''.join(pairs[:9]))
    (folder / 'labels.tsv').write_text(''.join(f'{x}\t{i % 2}\n' for i, x in enumerate(lines)))
    return folder


def written(data, folder):
    """The same kind of data set on the files of `folder`, with short rows."""
    if isinstance(data, Tfds):
        return Tfds('digits')
    tokenizer = data.tokenizer
    if hasattr(tokenizer, 'train_bytes'):
        tokenizer = dataclasses.replace(tokenizer, vocab_size=VOCAB)
    common = {'tokenizer': tokenizer, 'cache': str(folder / 'cache')}
    if isinstance(data, Documents):
        packing = data.packing
        if getattr(packing, 'context', 0):
            packing = dataclasses.replace(packing, context=8)
        valid = f'valid={folder}/held-out.txt'
        source = TextFiles(f'{folder}/text.txt', evals=(valid,), documents='paragraph')
        return Documents(source=source, length=32, packing=packing, **common)
    if isinstance(data, SentencePairs):
        source = TextFiles(f'{folder}/pairs.tsv', evals=(f'valid={folder}/held-out-pairs.tsv',))
        return SentencePairs(source=source, source_length=24, target_length=24, **common)
    assert isinstance(data, LabelledTexts)
    path = f'{folder}/labels.tsv'
    source = TextFiles(path, evals=(f'test={path}',))
    return LabelledTexts(source=source, length=16, **common)


def shrunk(name, folder):
    """The config with the same parts, each of them tiny, without dropout and random augmentation."""
    config = load(name)
    data = written(config.data, folder)
    small = dict(width=16, embed_width=8, layers=1, heads=2, max_length=32, decoder_layers=0)
    small |= dict(mlp_width=32, dropout=0.0, dtype='float32', vocab_multiple=1)
    if hasattr(config.data, 'tokenizer'):
        small['vocab'] = data.tokenizer.vocab_size
    names = {f.name for f in config_lib.fields(config.model)}
    # What the model writes at evaluations takes a compile of its own.
    task = dict.fromkeys({'sample_tokens', 'bleu_examples'} & vars(config.task).keys(), 0)
    if hasattr(config.task, 'mask_token'):
        task = dict(vocab_size=data.tokenizer.vocab_size)
    if isinstance(data, Tfds):
        task = dict(mean=(0.3,), std=(0.35,), augmentations=())
    return dataclasses.replace(
        config,
        model=config.model.clone(**{k: v for k, v in small.items() if k in names}),
        task=dataclasses.replace(config.task, **task),
        data=data,
        steps=3,
        batch_size=16,
        eval_batch_size=16,
        accumulate=1,
        log_every=1,
        eval_every=0,
        checkpoint=Checkpoint(every=0),
    )


def drop_rows(kind, monkeypatch):
    """Lets every third example count for nothing in training, so that parts and devices differ."""
    plain = kind.metrics

    def metrics(self, outputs, batch):
        mask = batch['mask'] if 'mask' in batch else (batch['id'] % 3 > 0).astype(jnp.float32)
        return plain(self, outputs, {**batch, 'mask': mask})

    monkeypatch.setattr(kind, 'metrics', metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'char_rnn:gru',
        'stdlib_lm',
        'bert_large:next_sentence',
        'translate_small',
        'imdb_lstm',
        'cifar_vit',
    ],
)
def test_one_device_equals_eight_that_accumulate(name, files, tmp_path, monkeypatch):
    """The real loop on one device against eight that take two parts, a row a device, uneven masks."""
    config = shrunk(name, files)
    drop_rows(type(config.task), monkeypatch)
    others = dataclasses.replace(config, accumulate=2)
    many, _, _ = small.losses(others, 3, devices=8)

    if name == 'translate_small':
        config.task = dataclasses.replace(config.task, bleu_examples=3, beams=2)
    if name == 'stdlib_lm':
        config.task = dataclasses.replace(config.task, sample_tokens=4)
    make, workdir = mesh_lib.make_mesh, tmp_path / 'run'
    monkeypatch.setattr(mesh_lib, 'make_mesh', lambda sizes: make(sizes, jax.devices()[:1]))
    trainer.train(config, str(workdir))
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    one = [row['train/loss'] for row in rows if 'train/loss' in row]
    assert len(one) == 3 and all(0 < loss < 100 for loss in one)
    np.testing.assert_allclose(many, one, rtol=1e-5)

    if name != 'cifar_vit':
        assert (workdir / 'tokenizer.json').exists()
        # What a set says of its rows without reading files, as `sample` uses it, is true.
        row = config.data.train_source().fetch(np.zeros(1, np.int64))
        known = config.data.example()
        assert {k: (v.shape, v.dtype) for k, v in known.items()} == {
            k: (v.shape[1:], v.dtype) for k, v in row.items()
        }
    if name == 'translate_small':
        assert 0 <= rows[-1]['eval/valid/bleu'] <= 100 and 0 <= rows[-1]['eval/valid/chrf'] <= 100
        scores = json.loads((workdir / 'run.json').read_text())['scores']
        assert 'tok:13a' in scores['valid/bleu_signature']
        assert 'version:' in scores['valid/chrf_signature']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['translate_small', 'bert_tiny', 'char_rnn', 'lm_small'])
def test_half_precision_trains_alike(name, files):
    """bfloat16 on this backend, which lacks a program for some products of that type."""
    config = shrunk(name, files)
    single, _, _ = small.losses(config, 3)
    config.model = config.model.clone(dtype='bfloat16')
    half, _, _ = small.losses(config, 3)
    np.testing.assert_allclose(half, single, rtol=2e-2)


# ---- mistakes -------------------------------------------------------------------------------------


def refused(config, workdir, capsys):
    """What training prints when it ends with exit code 2."""
    assert errors.run(lambda _: trainer.train(config, str(workdir)), ['train.py']) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and len(message.splitlines()) <= 2
    assert not (workdir / 'metrics.jsonl').exists()
    return message


@pytest.mark.parametrize(
    ('name', 'file', 'content', 'words'),
    [
        ('char_rnn', 'a.txt', b'', 'a.txt is empty'),
        ('char_rnn', 'a.txt', b' \n\n', 'only blank lines'),
        ('lm_small', 'a.jsonl', b'{"text": "' + b'x' * 99 + b'"}\n', 'a.jsonl:1'),
        ('bert_tiny', 'a.txt', b'fine\ngr\xf6sse\n', 'a.txt:2: byte 0xf6'),
        ('translate_small', 'a.tsv', b'one\teins\ntwo zwei\n', 'a.tsv:2: has 1 column'),
        ('imdb_lstm', 'a.tsv', b'good\t1\nbad\n', 'a.tsv:2: has 1 column'),
    ],
)
def test_bad_text_ends_in_one_clear_line(name, file, content, words, files, tmp_path, capsys):
    config = shrunk(name, files)
    (tmp_path / file).write_bytes(content)
    config.data.source.train, config.data.source.line_limit = str(tmp_path / file), 99
    assert words in refused(config, tmp_path / 'run', capsys)


def test_a_tokenizer_that_does_not_match_the_checkpoint(files, tmp_path, capsys):
    config = shrunk('translate_small', files)
    pairs = (files / 'pairs.tsv').read_text()
    text = tmp_path / 'pairs.tsv'
    config.data.source.train = str(text)
    text.write_text(pairs)
    config.data.fit()
    place = Workdir(str(tmp_path / 'run'))
    place.create()
    place.config.write_text(json.dumps(config_lib.to_json(config)))
    config.data.keep(place.path)
    place.release()
    # The text that the tokenizer is learned from has changed since the run began.
    text.write_text(pairs.replace('dog', 'frog'))
    config.data.tokenizer = type(config.data.tokenizer)(vocab_size=VOCAB)
    message = refused(config, place.path, capsys)
    assert 'tokenizer' in message and str(place.path) in message


@pytest.mark.slow
def test_bert_large_takes_one_real_step(files):
    """All 336 million parameters, one row of 128 tokens: the first step of Adam is known in size."""
    config = load('bert_large')
    tokenizer = Bytes()  # ids below 260 of the 30,522; the text here is too short for more
    config.data.source.train, config.data.tokenizer = str(files / 'text.txt'), tokenizer
    config.data.length, config.data.cache = 128, str(files / 'cache')
    config.task = MaskedLM(vocab_size=tokenizer.vocab_size, mask_token=tokenizer.mask)
    assert config.model.dtype == 'bfloat16'
    config = dataclasses.replace(config, batch_size=1, accumulate=1, steps=1)
    program, feed, order = small.program(config)
    step, packing = program.compile_train(feed.abstract(mask=False), feed.resident)
    state = program.init(feed.source.fetch(order.batch(0)))
    before = jax.tree.map(lambda x: np.array(x, copy=True), state.params)
    padding = 70 * config.model.width + 70  # the table and its bias are padded to 30,592 rows
    assert sum(x.size for x in jax.tree.leaves(before)) - padding == 336_226_108
    batch = feed.place(feed.load(order.batch(0)))
    state, packed = step(state, batch, feed.resident, program.place_hyper())
    means = packing.means(np.asarray(packed))
    assert packing.unpack(np.asarray(packed))['_finite'][0] == 1 and int(state.step) == 1
    assert means['loss'] == pytest.approx(np.log(30522), rel=0.1)  # a fresh model knows nothing
    rate = float(config.optimizer.rate(0, 1))
    assert means['learning_rate'] == pytest.approx(rate)
    moved = 0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        change = np.abs(np.asarray(new) - old)
        # g / (|g| + eps) is at most 1, and the decay adds its share of the weight.
        assert change.max() <= rate * (1.001 + config.optimizer.weight_decay * np.abs(old).max())
        moved += np.count_nonzero(change)
    assert moved > 0.9 * 336_226_108 * (1 - 30522 * 1024 / 336_226_108)
