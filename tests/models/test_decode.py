"""Decoding with a cache against decoding without, filters against numpy, beams against all sequences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models import decode
from jaxdl.models.decode import Sampling
from jaxdl.models.rnn import RnnLM
from jaxdl.models.seq2seq import Seq2Seq
from jaxdl.models.transformer import TransformerLM, modern

TOTAL = 15
SMALL = dict(width=32, layers=2, heads=4, vocab=20, max_length=40, init_std=0.1)
MODELS = {
    'gpt2': TransformerLM(**SMALL),
    'modern': modern(**SMALL, kv_heads=2, scan_layers=True),
    'sinusoidal': TransformerLM(
        **SMALL, positions='sinusoidal', pre_norm=False, tied=False, head_chunks=2
    ),
    'lstm': RnnLM(vocab=20, width=16),
    'gru': RnnLM(vocab=20, width=16, cell='gru'),
}


def make(name, noise=0.4, scale=4.0):
    model = MODELS[name]
    prompt = jax.random.randint(jax.random.key(0), (3, 5), 0, 20)
    variables = jax.jit(lambda: model.init(jax.random.key(1), prompt, train=False))()
    leaves, shape = jax.tree.flatten(variables)
    rng = np.random.default_rng(5)
    # Fresh models repeat one token; moved parameters give varied text, so that errors show.
    moved = [x + noise * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    variables = jax.tree.unflatten(shape, moved)
    table = variables['params']['embed']
    table = table['tokens'] if 'tokens' in table else table
    table['embedding'] = table['embedding'] * scale
    return model, variables, prompt


@functools.partial(jax.jit, static_argnames='model')
def full_logits(model, variables, ids, segments=None):
    out = model.apply(variables, ids, segments, train=False)
    return out.logits() if hasattr(out, 'logits') else out


def greedy_uncached(model, variables, prompt, length):
    """Reads everything again for each token; what follows a token cannot change its logits."""
    time = prompt.shape[1]
    ids = np.zeros((len(prompt), TOTAL), np.int32)
    ids[:, :time] = prompt
    for i in range(time, time + length):
        ids[:, i] = np.asarray(full_logits(model, variables, ids))[:, i - 1].argmax(-1)
    return ids[:, time : time + length]


@pytest.mark.parametrize('name', MODELS)
def test_cached_equals_uncached_token_for_token(name):
    model, variables, prompt = make(name)
    tokens, lengths = decode.generate(model, variables, prompt, jax.random.key(0), length=10)
    np.testing.assert_array_equal(tokens, greedy_uncached(model, variables, prompt, 10))
    np.testing.assert_array_equal(lengths, 10)
    assert len(np.unique(tokens)) > 1


@pytest.mark.parametrize('name', MODELS)
def test_cached_logits_equal_uncached(name):
    model, variables, _ = make(name, noise=0.05, scale=1.0)
    ids = jax.random.randint(jax.random.key(2), (3, 12), 0, 20)
    full = full_logits(model, variables, ids)
    logits, cache = model.apply(variables, ids[:, :5], train=False, cache=model.init_cache(3, 12))
    np.testing.assert_allclose(logits, full[:, 4], atol=1e-5)
    step = jax.jit(lambda cache, token: model.apply(variables, token, train=False, cache=cache))
    for i in range(5, 12):
        logits, cache = step(cache, ids[:, i : i + 1])
        np.testing.assert_allclose(logits, full[:, i], atol=1e-5)
    assert step._cache_size() == 1


@pytest.mark.parametrize('name', MODELS)
def test_prompts_of_unequal_length(name):
    model, variables, prompt = make(name)
    lengths = [5, 2, 4]
    padded = np.zeros((3, 5), np.int32)
    segments = np.zeros((3, 5), np.int32)
    for row, n in enumerate(lengths):
        padded[row, 5 - n :] = prompt[row, :n]
        segments[row, 5 - n :] = 1
    tokens, _ = decode.generate(
        model, variables, jnp.array(padded), jax.random.key(0), segments=segments, length=6
    )
    for row, n in enumerate(lengths):
        want = greedy_uncached(model, variables, np.repeat(prompt[row : row + 1, :n], 3, 0), 6)
        np.testing.assert_array_equal(tokens[row], want[0])


def test_one_compile_for_everything():
    model, variables, prompt = make('gpt2')
    decode.generate.clear_cache()
    sampling = Sampling(temperature=0.9, top_k=5, top_p=0.9)
    for seed in range(3):
        decode.generate(
            model, variables, prompt + seed, jax.random.key(seed), length=10, sampling=sampling
        )
    assert decode.generate._cache_size() == 1


def test_rows_end_at_the_end_token():
    model, variables, prompt = make('gpt2')
    free, _ = decode.generate(model, variables, prompt, jax.random.key(0), length=10)
    free = np.asarray(free)
    end = int(free[0, 3])
    tokens, lengths = decode.generate(
        model, variables, prompt, jax.random.key(0), length=10, end_token=end
    )
    for row in range(3):
        hits = np.flatnonzero(free[row] == end)
        stop = hits[0] + 1 if len(hits) else 10
        assert lengths[row] == stop
        np.testing.assert_array_equal(tokens[row, :stop], free[row, :stop])
        np.testing.assert_array_equal(tokens[row, stop:], 0)


def test_sampling_draws_from_the_models_distribution():
    model, variables, prompt = make('gpt2')
    one = jnp.repeat(prompt[:1], 4000, axis=0)
    tokens, _ = decode.generate(
        model, variables, one, jax.random.key(3), length=1, sampling=Sampling(temperature=1.5)
    )
    counts = np.bincount(np.asarray(tokens[:, 0]), minlength=20) / 4000
    want = jax.nn.softmax(full_logits(model, variables, prompt[:1])[0, -1] / 1.5)
    np.testing.assert_allclose(counts, want, atol=0.03)


@pytest.mark.parametrize('k', [1, 3, 20, 50])
def test_top_k_is_numpys(k):
    logits = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    got = np.asarray(decode.keep_top_k(jnp.array(logits), k))
    for row in range(6):
        keep = np.argsort(-logits[row])[:k]
        want = np.full(20, -np.inf, np.float32)
        want[keep] = logits[row][keep]
        np.testing.assert_array_equal(got[row], want)


@pytest.mark.parametrize('p', [1e-6, 0.3, 0.9, 0.999])
def test_top_p_is_numpys(p):
    logits = 2 * np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    got = np.asarray(decode.keep_top_p(jnp.array(logits), p))
    for row in range(6):
        weights = np.exp(logits[row]) / np.exp(logits[row]).sum()
        keep, total = [], 0.0
        for token in np.argsort(-weights):
            keep.append(token)
            total += weights[token]
            if total >= p:
                break
        want = np.full(20, -np.inf, np.float32)
        want[keep] = logits[row][keep]
        np.testing.assert_array_equal(got[row], want)


@pytest.mark.parametrize('bad', [dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0)])
def test_check_names_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad).check()


VOCAB, END, LENGTH = 4, 3, 4


def seq2seq():
    model = Seq2Seq(
        width=16, layers=2, heads=2, vocab=VOCAB, dropout=0.0, scale_embedding=False, init_std=0.6
    )
    source = jax.random.randint(jax.random.key(0), (3, 5), 0, VOCAB)
    segments = jnp.array([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]])
    variables = jax.jit(lambda: model.init(jax.random.key(4), source, source, train=False))()
    return model, variables, source, segments


@functools.partial(jax.jit, static_argnames='model')
def target_logits(model, variables, source, target, segments):
    return model.apply(variables, source, target, segments, train=False)


@functools.partial(jax.jit, static_argnames=('model', 'beams'))
def search(model, variables, source, segments, beams, length_penalty=0.6):
    cache = model.init_cache(3, LENGTH + 1, 5)
    begin = jnp.zeros((3, 1), jnp.int32)
    logits, cache = model.apply(variables, source, begin, segments, train=False, cache=cache)
    return decode.beam_loop(
        lambda c, t: model.apply(variables, None, t[:, None], train=False, cache=c),
        logits,
        cache,
        beams=beams,
        length=LENGTH,
        end_token=END,
        length_penalty=length_penalty,
    )


def exhaustive(model, variables, source, segments):
    """(log-probability, sequence) of all sequences that end within LENGTH tokens, for one row."""
    bodies = itertools.product([t for t in range(VOCAB) if t != END], repeat=LENGTH - 1)
    # Sequences that end early are prefixes of these; reading on does not change their logits.
    ids = np.array([(0, *body) for body in bodies], np.int32)
    rows = len(ids)
    logits = target_logits(
        model, variables, np.repeat(source, rows, 0), ids, np.repeat(segments, rows, 0)
    )
    logp = np.asarray(jax.nn.log_softmax(logits))
    found = {}
    for row, steps in zip(ids.tolist(), logp, strict=True):
        for n in range(LENGTH):
            sequence = (*row[1 : n + 1], END)
            found[sequence] = sum(steps[i, token] for i, token in enumerate(sequence))
    return found


@pytest.mark.slow
@pytest.mark.parametrize('strength', [0.0, 0.6, 2.0, -1.0])
def test_wide_beams_find_what_exhaustive_search_finds(strength):
    model, variables, source, segments = seq2seq()
    beams = VOCAB**LENGTH // 2
    tokens, scores = search(model, variables, source, segments, beams, strength)
    for row in range(3):
        found = exhaustive(model, variables, source[row : row + 1], segments[row : row + 1])
        assert len(found) == sum(3**n for n in range(LENGTH))
        want = sorted(
            ((score / ((5 + len(s)) / 6) ** strength, s) for s, score in found.items()),
            reverse=True,
        )
        for place, (score, sequence) in enumerate(want[:10]):
            np.testing.assert_allclose(scores[row, place], score, atol=1e-5)
            padded = (*sequence, *[0] * (LENGTH - len(sequence)))
            assert tuple(np.asarray(tokens[row, place])) == padded
    if strength == 0.6:
        best, lengths = decode.translate(
            model,
            variables,
            source,
            segments,
            length=LENGTH,
            begin_token=0,
            end_token=END,
            beams=beams,
        )
        np.testing.assert_array_equal(best, tokens[:, 0])
        for row in range(3):
            assert best[row, lengths[row] - 1] == END


@pytest.mark.slow
def test_narrow_beams_never_beat_wide_ones_and_report_true_scores():
    model, variables, source, segments = seq2seq()
    _, wide = search(model, variables, source, segments, VOCAB**LENGTH // 2)
    tokens, narrow = search(model, variables, source, segments, 2)
    assert (narrow[:, 0] <= wide[:, 0] + 1e-5).all()
    for row in range(3):
        sequence = [int(t) for t in tokens[row, 0]]
        found = exhaustive(model, variables, source[row : row + 1], segments[row : row + 1])
        cut = tuple(sequence[: sequence.index(END) + 1])
        score = found[cut] / ((5 + len(cut)) / 6) ** 0.6
        np.testing.assert_allclose(narrow[row, 0], score, atol=1e-5)


@pytest.mark.parametrize('scan', [pytest.param(False, marks=pytest.mark.slow), True])
def test_greedy_translation_equals_uncached(scan):
    model = Seq2Seq(
        width=32, layers=2, heads=4, vocab=20, dropout=0.0, init_std=0.3, scan_layers=scan
    )
    source = jax.random.randint(jax.random.key(0), (3, 6), 0, 20)
    segments = jnp.array([[1] * 6, [1] * 3 + [0] * 3, [1] * 4 + [0] * 2])
    variables = jax.jit(lambda: model.init(jax.random.key(4), source, source, train=False))()
    tokens, lengths = decode.translate(
        model, variables, source, segments, length=8, begin_token=1, end_token=2, beams=1
    )
    ids = np.ones((3, 9), np.int32)
    for i in range(8):
        logits = np.asarray(target_logits(model, variables, source, ids, segments))
        ids[:, i + 1] = logits[:, i].argmax(-1)
    for row in range(3):
        np.testing.assert_array_equal(tokens[row, : lengths[row]], ids[row, 1 : 1 + lengths[row]])


def test_unfinished_sequences_stand_only_where_none_ended():
    """A model that never ends still gives its likeliest sequences."""
    table = jnp.log(jnp.array([0.6, 0.3, 0.1, 0.0]) + 1e-38)

    class Nothing:
        def take(self, rows):
            return self

    jax.tree_util.register_pytree_node(Nothing, lambda _: ((), None), lambda *_: Nothing())

    def step(cache, token):
        return jnp.broadcast_to(table, (token.shape[0], 4)), cache

    for strength in (0.0, 1.0):
        tokens, scores = decode.beam_loop(
            step, table[None], Nothing(), beams=2, length=3, end_token=3, length_penalty=strength
        )
        np.testing.assert_array_equal(tokens[0, 0], [0, 0, 0])
        expected = 3 * np.log(0.6) / ((5 + 3) / 6) ** strength
        np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.0, 1e-45, 1e-38, 1e-6])
@pytest.mark.parametrize('filters', [{}, {'top_k': 3}, {'top_p': 0.9}])
def test_a_tiny_temperature_takes_the_most_likely(temperature, filters):
    logits = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32) * 100
    logits[0, :3] = -np.inf
    sampling = Sampling(temperature=temperature, **filters)
    sampling.check()
    tokens = decode.choose(jnp.asarray(logits), jax.random.key(0), sampling)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


@jax.tree_util.register_pytree_node_class
class Previous:
    """The cache of a chain whose next token depends on the last two."""

    def __init__(self, token):
        self.token = token

    def take(self, rows):
        return Previous(self.token[rows])

    def tree_flatten(self):
        return (self.token,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


CHAIN = np.random.default_rng(3).normal(size=(VOCAB, VOCAB, VOCAB)) * 1.5
CHAIN[..., END] -= 0.5


@functools.partial(jax.jit, static_argnames=('beams', 'strength'))
def search_chain(beams, strength):
    table = jnp.asarray(CHAIN, jnp.float32)
    start = jnp.arange(3)  # rows that begin with different tokens
    return decode.beam_loop(
        lambda cache, token: (table[cache.token, token], Previous(token)),
        table[0, start],
        Previous(start),
        beams=beams,
        length=LENGTH,
        end_token=END,
        length_penalty=strength,
    )


def search_in_python(start, beams, strength):
    """[(score, sequence)] of the ended ones, best first: the definition, without an early stop."""
    logp = CHAIN - np.log(np.exp(CHAIN).sum(-1, keepdims=True))
    alive, ended = [(0.0, (0, start))], []
    for _ in range(LENGTH):
        grown = [(s + logp[q[-2], q[-1], t], (*q, t)) for s, q in alive for t in range(VOCAB)]
        grown = sorted(grown, reverse=True)[: 2 * beams]
        ended += [(s / ((3 + len(q)) / 6) ** strength, q[2:]) for s, q in grown if q[-1] == END]
        alive = [(s, q) for s, q in grown if q[-1] != END][:beams]
    return sorted(ended, reverse=True)[:beams]


@pytest.mark.parametrize('strength', [0.0, 0.6, 3.0, -1.0])
@pytest.mark.parametrize('beams', [1, 3, 40])
def test_beams_and_length_penalty_of_a_chain(beams, strength):
    tokens, scores = search_chain(beams, strength)
    for row in range(3):
        expected = search_in_python(row, beams, strength)
        assert expected or beams == 1
        for place, (score, sequence) in enumerate(expected):
            np.testing.assert_allclose(scores[row, place], score, atol=1e-5)
            padded = (*sequence, *[0] * (LENGTH - len(sequence)))
            assert tuple(np.asarray(tokens[row, place])) == padded


def test_the_chain_tells_widths_and_penalties_apart():
    found = [
        [search_in_python(row, beams, strength)[:1] for row in range(3)]
        for beams, strength in ((1, 0.6), (40, 0.6), (40, 3.0), (40, -1.0))
    ]
    found = [[[sequence for _, sequence in row] for row in rows] for rows in found]
    assert found[0] != found[1] and found[1] != found[2] and found[2] != found[3]
