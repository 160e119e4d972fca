"""Decoding: sampling from a language model and beam search, with a cache, compiled once.

A model decodes here if it has `init_cache` and, called with `cache=`, returns the pair
(logits [rows, vocab] of the last token, cache), where `cache.take(rows)` reorders the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.errors import at_least

# Far below any log-probability, and finite: differences of two of them are not nan.
IMPOSSIBLE = -1e30

# step(cache, tokens [rows]) -> (logits [rows, vocab] of the next token, cache)
Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits; the default takes the most likely.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: choose among the k most likely tokens; 0: all.
        top_p: choose among the fewest tokens whose probabilities reach p (arXiv:1904.09751).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self):
        at_least(self, temperature=0, top_k=0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p={self.top_p}: must be in (0, 1]')


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Returns `logits` [..., vocab] with all but the k largest at -inf; ties with the k-th stay."""
    k = min(k, logits.shape[-1])
    return jnp.where(logits < jax.lax.top_k(logits, k)[0][..., -1:], -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Returns `logits` [..., vocab] with all outside the nucleus at -inf.

    The nucleus is the fewest most likely tokens whose probabilities sum to `p` or more.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The most likely token always stays: nothing comes before it.
    threshold = jnp.min(jnp.where(before < p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def choose(logits: jax.Array, rng: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns one token [rows] per row of `logits` [rows, vocab]."""
    if sampling.temperature < jnp.finfo(jnp.float32).tiny:  # which a device takes for 0
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32)
    # Differences from the largest, or a small temperature would make several of them infinite.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)


def sample_loop(
    step: Step,
    logits: jax.Array,
    cache: Any,
    rng: jax.Array,
    *,
    length: int,
    sampling: Sampling,
    end_token: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Chooses up to `length` tokens after a prefix, whose `logits` [rows, vocab] and cache are given.

    Returns (tokens [rows, length], lengths [rows]). A row ends with `end_token` (-1: never), which
    its length counts; zeros follow. The loop stops when every row has ended.
    """
    rows = logits.shape[0]

    def going(state):
        i, _, _, done, *_ = state
        return (i < length) & ~done.all()

    def advance(state):
        i, tokens, lengths, done, logits, cache = state
        token = choose(logits, jax.random.fold_in(rng, i), sampling)
        token = jnp.where(done, 0, token)
        lengths = jnp.where(done, lengths, i + 1)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, i))
        done = done | (token == end_token)
        logits, cache = step(cache, token)
        return i + 1, tokens, lengths, done, logits, cache

    state = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((rows, length), jnp.int32),
        jnp.zeros((rows,), jnp.int32),
        jnp.zeros((rows,), bool),
        logits,
        cache,
    )
    _, tokens, lengths, *_ = jax.lax.while_loop(going, advance, state)
    return tokens, lengths


def penalty(length: jax.Array | int, strength: float) -> jax.Array:
    """Returns the divisor ((5 + length) / 6)**strength of Wu et al. 2016 (arXiv:1609.08144)."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** strength


def beam_loop(
    step: Step,
    logits: jax.Array,
    cache: Any,
    *,
    beams: int,
    length: int,
    end_token: int,
    length_penalty: float = 0.6,
) -> tuple[jax.Array, jax.Array]:
    """Searches the likeliest continuations of a prefix, whose `logits` [batch, vocab] and cache are given.

    Keeps `beams` unfinished and `beams` finished sequences a row, and stops when no unfinished one
    can still beat the worst finished one. Scores are log-probabilities over `penalty(length)`, the
    end token counted in both.

    Returns (tokens [batch, beams, length], scores [batch, beams]), best first. Sequences hold their
    end token, then zeros. One that reached `length` without an end stands only where fewer
    than `beams` have ended.
    """
    batch, vocab = logits.shape
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    cache = cache.take(jnp.repeat(jnp.arange(batch), beams))
    rows = jnp.arange(batch)[:, None]
    empty = jnp.zeros((batch, beams, length), jnp.int32)
    nothing = jnp.full((batch, beams), IMPOSSIBLE)

    def best(scores, tokens, extra_scores, extra_tokens):
        scores, index = jax.lax.top_k(jnp.concatenate([scores, extra_scores], 1), beams)
        return scores, jnp.concatenate([tokens, extra_tokens], 1)[rows, index]

    def going(state):
        i, alive, _, finished, *_ = state
        # Log-probabilities only fall; the divisor is largest at full length for strength > 0 and
        # at the present one for strength < 0.
        reach = jnp.maximum(penalty(length, length_penalty), penalty(i + 1, length_penalty))
        return (i < length) & (alive.max(1) / reach > finished.min(1)).any()

    def advance(state):
        i, alive, tokens, finished, ended, logp, cache = state
        total = (alive[..., None] + logp.reshape(batch, beams, vocab)).reshape(batch, -1)
        # Twice the beams: even if all beams end, as many unfinished ones remain.
        scores, index = jax.lax.top_k(total, min(2 * beams, total.shape[1]))
        beam, token = index // vocab, (index % vocab).astype(jnp.int32)
        candidates = tokens[rows, beam].at[:, :, i].set(token)
        ends = (token == end_token) & (scores > IMPOSSIBLE / 2)
        score = jnp.where(ends, scores / penalty(i + 1, length_penalty), IMPOSSIBLE)
        finished, ended = best(finished, ended, score, candidates)
        scores = jnp.where(token == end_token, IMPOSSIBLE, scores)
        alive, keep = jax.lax.top_k(scores, beams)
        tokens = candidates[rows, keep]
        cache = cache.take((rows * beams + beam[rows, keep]).reshape(-1))
        logits, cache = step(cache, token[rows, keep].reshape(-1))
        logp = jax.nn.log_softmax(logits.astype(jnp.float32))
        return i + 1, alive, tokens, finished, ended, logp, cache

    first = jnp.full((batch, beams), IMPOSSIBLE).at[:, 0].set(0.0)
    logp = jnp.repeat(logp, beams, axis=0)
    state = (jnp.zeros((), jnp.int32), first, empty, nothing, empty, logp, cache)
    i, alive, tokens, finished, ended, *_ = jax.lax.while_loop(going, advance, state)
    # Both are sorted: the ended ones first, then as many unfinished ones as there is room for.
    count = (finished > IMPOSSIBLE / 2).sum(axis=1, keepdims=True)
    place = jnp.arange(beams)[None, :]
    index = jnp.where(place < count, place, beams + place - count)
    scores = jnp.concatenate([finished, alive / penalty(i, length_penalty)], 1)[rows, index]
    return jnp.concatenate([ended, tokens], 1)[rows, index], scores


@functools.partial(jax.jit, static_argnames=('model', 'length', 'sampling', 'end_token'))
def generate(
    model: nn.Module,
    variables: dict,
    prompt: jax.Array,
    rng: jax.Array,
    *,
    length: int,
    segments: jax.Array | None = None,
    sampling: Sampling | None = None,
    end_token: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Continues each row of `prompt` [batch, time] by up to `length` tokens.

    Compiled once per model, sampling and shapes: pad prompts on the left and mark them by
    `segments` [batch, time], 0 on padding and 1 on tokens, to serve many lengths by one program.

    Args:
        model: a language model with `init_cache`.
        variables: {'params': …}.
        prompt: [batch, time] int32, at least one token a row.
        rng: key of the draws; unused when greedy.
        length: most tokens to add.
        segments: which tokens of the prompt are real; None: all.
        sampling: how tokens are chosen; None: greedily.
        end_token: the token that ends a row; -1: none.

    Returns:
        (tokens [batch, length], lengths [batch]): what was added and how much of it counts.
    """
    cache = model.init_cache(prompt.shape[0], prompt.shape[1] + length)
    logits, cache = model.apply(variables, prompt, segments, train=False, cache=cache)

    def step(cache, token):
        return model.apply(variables, token[:, None], train=False, cache=cache)

    return sample_loop(
        step,
        logits,
        cache,
        rng,
        length=length,
        sampling=sampling or Sampling(),
        end_token=end_token,
    )


@functools.partial(
    jax.jit,
    static_argnames=('model', 'length', 'beams', 'begin_token', 'end_token', 'length_penalty'),
)
def translate(
    model: nn.Module,
    variables: dict,
    source: jax.Array,
    source_segments: jax.Array | None = None,
    *,
    length: int,
    begin_token: int,
    end_token: int,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> tuple[jax.Array, jax.Array]:
    """Translates each row of `source` [batch, source time]; `beams=1` decodes greedily.

    Compiled once per model, settings and shapes.

    Args:
        model: an encoder–decoder with `init_cache`.
        variables: {'params': …}.
        source: [batch, source time] int32.
        source_segments: [batch, source time], 0 on padding; None: no padding.
        length: most target tokens, the end token among them.
        begin_token: the token the decoder starts from.
        end_token: the token that ends a translation.
        beams: width of the search.
        length_penalty: above 0 prefers longer translations, see `penalty`.

    Returns:
        (tokens [batch, length], lengths [batch]): the best translation, its end token counted.
    """
    batch = source.shape[0]
    cache = model.init_cache(batch, length + 1, source.shape[1])
    begin = jnp.full((batch, 1), begin_token, jnp.int32)
    logits, cache = model.apply(variables, source, begin, source_segments, train=False, cache=cache)

    def step(cache, token):
        return model.apply(variables, None, token[:, None], train=False, cache=cache)

    if beams == 1:
        rng = jax.random.key(0)
        return sample_loop(
            step, logits, cache, rng, length=length, sampling=Sampling(), end_token=end_token
        )
    tokens, _ = beam_loop(
        step,
        logits,
        cache,
        beams=beams,
        length=length,
        end_token=end_token,
        length_penalty=length_penalty,
    )
    tokens = tokens[:, 0]
    is_end = tokens == end_token
    lengths = jnp.where(is_end.any(1), is_end.argmax(1) + 1, length)
    return tokens, lengths
