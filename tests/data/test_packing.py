import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data.text import packing
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.masked import Masked, draw
from jaxdl.data.text.packing import Concatenated, Packed, pack
from jaxdl.data.text.pairs import PairRows
from jaxdl.data.text.tokenizers import Bytes
from jaxdl.errors import UserError

BYTES = Bytes()
TEXTS = st.lists(st.text('abcdefgé ', min_size=1, max_size=60), min_size=1, max_size=25)


def corpus_of(texts, dtype=np.uint16):
    ids, offsets = [BYTES.sep], [0]
    for text in texts:
        ids += [*BYTES.encode(text).tolist(), BYTES.sep]
        offsets.append(len(ids) - 1)
    size = sum(len(text.encode()) for text in texts)
    return Corpus(np.array(ids, dtype), np.array(offsets, np.int64), BYTES.sep, size)


def everything(rows):
    return rows.fetch(np.arange(len(rows)))


def pieces(batch):
    """(tokens, targets, mask) of every segment of every row, with the row's invariants checked."""
    found = []
    for row in range(len(batch['tokens'])):
        segments = batch['segments'][row]
        used = segments > 0
        count = segments.max()
        assert count >= 1 and (np.diff(segments[used]) >= 0).all()
        assert not used[np.argmin(used) :].any() or used.all()  # padding only at the end
        assert not batch['target_mask'][row][~used].any()
        assert (batch['tokens'][row][~used] == BYTES.pad).all()
        for segment in range(1, count + 1):
            at = segments == segment
            assert batch['positions'][row][at].tolist() == list(range(at.sum()))
            found.append(tuple(batch[k][row][at] for k in ('tokens', 'targets', 'target_mask')))
    return found


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(2, 20), st.booleans(), st.booleans(), st.integers(0, 8))
def test_every_token_is_predicted_once_from_its_own_document(texts, length, stream, train, context):
    corpus = corpus_of(texts)
    kind = Concatenated(context=context) if stream else Packed(context=context)
    if context >= length:
        with pytest.raises(UserError, match='must be below'):
            kind.rows(corpus, BYTES, length=length, train=train)
        return
    rows = kind.rows(corpus, BYTES, length=length, train=train)
    batch = everything(rows)
    assert batch['tokens'].shape == (len(rows), length) and batch['tokens'].dtype == np.int32
    counted = []
    for tokens, targets, mask in pieces(batch):
        # Each input token is the target before it, and a separator stands only at the start.
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        assert BYTES.sep not in tokens[1:]
        if not mask.all():
            assert not train and not mask[: np.argmax(mask)].any()
        counted.append(targets[mask])
    wanted = sorted(corpus.ids[1:].tolist())
    assert sorted(np.concatenate(counted).tolist()) == wanted
    assert batch['bytes'].sum() == corpus.size
    if stream:
        assert np.concatenate(counted).tolist() == corpus.ids[1:].tolist()
    # Whole documents can be put together again from the counted targets in corpus order.
    whole = ''.join(texts)
    assert sum(map(len, counted)) == len(whole.encode()) + len(texts)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(2, 20), st.data())
def test_rows_are_random_access(texts, length, data):
    for kind in (Packed(), Concatenated()):
        rows = kind.rows(corpus_of(texts), BYTES, length=length, train=True)
        whole = everything(rows)
        ids = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=9))
        for name, values in rows.fetch(np.array(ids, np.int64)).items():
            np.testing.assert_array_equal(values, whole[name][ids])
            assert values.dtype == whole[name].dtype


def test_context_is_seen_and_not_counted():
    text = ''.join(chr(97 + i) for i in range(20))
    for kind in (Packed(context=3), Concatenated(context=3)):
        rows = kind.rows(corpus_of([text]), BYTES, length=8, train=False)
        batch = everything(rows)
        assert (~batch['target_mask'] & (batch['segments'] > 0)).sum() == 3 * (len(rows) - 1)
        places = batch['tokens'].tolist().index([*range(101, 109)])
        assert batch['target_mask'][places].tolist() == [False] * 3 + [True] * 5


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 2))
def test_packing_keeps_every_item_once_and_no_row_overflows(data, dims):
    capacity = tuple(data.draw(st.integers(1, 30)) for _ in range(dims))
    size = st.tuples(*(st.integers(1, c) for c in capacity))
    sizes = np.array(data.draw(st.lists(size, min_size=1, max_size=120)))
    items, counts = pack(sizes, capacity)
    assert sorted(items.tolist()) == list(range(len(sizes)))
    row = np.repeat(np.arange(len(counts)), counts)
    filled = np.zeros((len(counts), dims), int)
    np.add.at(filled, row, sizes[items])
    assert (filled <= capacity).all() and counts.min() >= 1 and counts.sum() == len(sizes)
    again = pack(sizes, capacity)
    np.testing.assert_array_equal(items, again[0])


def test_packing_wastes_little_and_does_not_slow_down_with_the_number_of_items():
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(1 / 90, 400_000), 512)
    _, counts = pack(sizes[:, None], (512,))
    assert sizes.sum() / (len(counts) * 512) > 0.99
    pairs = np.stack([np.minimum(rng.geometric(1 / 25, 50_000), 128)] * 2, axis=1)
    pairs[:, 1] = np.clip(pairs[:, 1] + rng.integers(-5, 6, len(pairs)), 1, 128)
    _, counts = pack(pairs, (128, 128))
    assert pairs.sum() / (len(counts) * 256) > 0.9


@pytest.mark.parametrize('vocab', [np.uint16, np.uint32])
def test_in_memory_is_the_same_rows(monkeypatch, vocab):
    rows = Packed().rows(corpus_of(['hello', 'world!' * 9], vocab), BYTES, length=16, train=True)
    block = rows.in_memory()
    for name, values in everything(rows).items():
        np.testing.assert_array_equal(block[name], values)
    rows = Packed().rows(corpus_of(['hello']), BYTES, length=16, train=True)
    monkeypatch.setattr(packing, 'IN_MEMORY', 10)
    assert rows.in_memory() is None


def test_bits_per_byte_of_a_uniform_model_has_its_formula_for_every_tokenizer(tmp_path):
    import jax.numpy as jnp

    from jaxdl.data.text.documents import Documents
    from jaxdl.data.text.sources import TextFiles
    from jaxdl.data.text.tokenizers import Bpe
    from jaxdl.tasks.language_model import LanguageModel

    path = tmp_path / 'a.txt'
    text = 'So much depends upon a red wheel barrow – glazed with rain water.\n' * 7
    path.write_text(text)
    for tokenizer in (Bytes(), Bpe(vocab_size=300)):
        source = TextFiles(str(path), evals=(f'v={path}',))
        data = Documents(source=source, tokenizer=tokenizer, length=32, cache=str(tmp_path))
        batch = everything(data.eval_sources()['v'])
        vocab = tokenizer.vocab_size
        logits = jnp.zeros((*batch['tokens'].shape, vocab))
        means = LanguageModel().metrics(logits, {k: jnp.asarray(v) for k, v in batch.items()})
        predictions = len(tokenizer.encode(text)) + 1  # the separator at the end too
        formula = predictions * math.log2(vocab) / len(text.encode())
        assert float(means['bits_per_byte'].value()) == pytest.approx(formula, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(8, 20))
def test_masked_rows_hold_every_token_once_between_cls_and_sep(texts, length):
    corpus = corpus_of(texts)
    rows = Masked().rows(corpus, BYTES, length=length, train=True)
    batch = everything(rows)
    content = []
    for tokens, segments, positions, maskable, row in zip(*batch.values(), strict=True):
        for segment in range(1, segments.max() + 1):
            at = segments == segment
            part = tokens[at]
            assert part[0] == BYTES.cls and part[-1] == BYTES.sep
            assert positions[at].tolist() == list(range(at.sum()))
            assert maskable[at].tolist() == [False, *[True] * (at.sum() - 2), False]
            content += part[1:-1].tolist()
        assert not maskable[segments == 0].any()
        assert batch['row'][row] == row
    assert sorted(content) == sorted(x for x in corpus.ids.tolist() if x != BYTES.sep)


def sentences(count=40):
    """Documents that cannot be confused: document k is made of letter k alone, counted up."""
    return [chr(0x100 + 64 * k) * (5 + 7 * (k % 9)) for k in range(count)]


def test_next_sentence_pairs():
    texts = sentences()
    rows = Masked(next_sentence=True, seed=3).rows(corpus_of(texts), BYTES, length=32, train=True)
    batch = everything(rows)
    assert list(batch) == [
        'tokens',
        'segments',
        'positions',
        'maskable',
        'token_types',
        'next_sentence',
        'row',
    ]
    for i in range(len(rows)):
        used = batch['segments'][i] > 0
        tokens, types = batch['tokens'][i][used], batch['token_types'][i][used]
        ends = np.flatnonzero(tokens == BYTES.sep)
        assert tokens[0] == BYTES.cls and len(ends) == 2 and ends[1] == len(tokens) - 1
        assert types.tolist() == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
        first, second = tokens[1 : ends[0]], tokens[ends[0] + 1 : ends[1]]
        assert len(first) and len(second)
        assert not set(batch['tokens'][i][~used]) - {BYTES.pad}
        np.testing.assert_array_equal(
            batch['maskable'][i][used], ~np.isin(tokens, [BYTES.cls, BYTES.sep])
        )
        same = {x for x in first if x >= 128} & {x for x in second if x >= 128}
        if batch['next_sentence'][i] == 0:
            assert same
    # The same document would share its letter, whose two bytes belong to no other document.
    letters = {text[0].encode() for text in texts}
    assert len(letters) == len(texts)
    many = Masked(next_sentence=True).rows(corpus_of(texts * 40), BYTES, length=32, train=True)
    labels = everything(many)['next_sentence']
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(labels))


def test_random_partners_come_from_another_document():
    rows = Masked(next_sentence=True).rows(corpus_of(sentences()), BYTES, length=16, train=True)
    ids = np.arange(len(rows))
    start, _, second, size, random = rows.pairs(ids)
    offsets = rows.corpus.offsets
    own, other = (np.searchsorted(offsets, x, side='right') for x in (start, second))
    last = np.searchsorted(offsets, second + size - 1, side='right')
    assert random.any() and not random.all()
    np.testing.assert_array_equal(own == other, ~random)
    np.testing.assert_array_equal(other, last)


def test_next_sentence_pairs_depend_on_seed_and_row_alone():
    corpus = corpus_of(sentences())
    first = Masked(next_sentence=True, seed=1).rows(corpus, BYTES, length=32, train=True)
    other = Masked(next_sentence=True, seed=2).rows(corpus, BYTES, length=32, train=True)
    ids = np.array([5, 2, 7])
    np.testing.assert_array_equal(first.fetch(ids)['tokens'], everything(first)['tokens'][ids])
    assert (everything(first)['tokens'] != everything(other)['tokens']).any()
    with pytest.raises(UserError, match='at least two documents'):
        Masked(next_sentence=True).rows(corpus_of(['only one']), BYTES, length=32, train=True)


def test_draws_are_uniform_and_independent():
    ids = np.arange(60_000)
    a, b = (draw(0, ids, stream, np.full(len(ids), 6)) for stream in (0, 1))
    counts = np.bincount(a * 6 + b, minlength=36)
    assert ((counts - 60_000 / 36) ** 2 / (60_000 / 36)).sum() < 75  # chi-squared, 35 degrees
    assert (draw(1, ids, 0, np.full(len(ids), 6)) != a).mean() > 0.7


PAIRS = st.lists(
    st.tuples(st.text('abc', max_size=9), st.text('xyz', max_size=9)), min_size=1, max_size=30
)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.booleans())
def test_each_pair_is_in_one_row_with_one_segment_on_both_sides(pairs, packed):
    source, target = corpus_of([s for s, _ in pairs]), corpus_of([t for _, t in pairs])
    sizes = np.stack([source.lengths, target.lengths], axis=1)
    order, counts = (
        pack(sizes, (12, 14)) if packed else (np.arange(len(pairs)), np.ones(len(pairs), int))
    )
    rows = PairRows(source, target, BYTES, (12, 14), order, counts)
    batch = everything(rows)
    found = []
    for i in range(len(rows)):
        row = {name: values[i] for name, values in batch.items()}
        assert row['source'].shape == (12,) and row['targets'].shape == (14,)
        assert row['source_segments'].max() == row['target_segments'].max()
        for segment in range(1, row['source_segments'].max() + 1):
            on, at = row['source_segments'] == segment, row['target_segments'] == segment
            assert row['source'][on][-1] == BYTES.sep and row['targets'][at][-1] == BYTES.sep
            assert row['target'][at].tolist() == [BYTES.sep, *row['targets'][at][:-1].tolist()]
            assert row['target_positions'][at].tolist() == list(range(at.sum()))
            found.append((BYTES.decode(row['source'][on]), BYTES.decode(row['targets'][at])))
    assert sorted(found) == sorted(pairs)
    if not packed:
        assert found == pairs
    assert batch['bytes'].sum() == target.size
