"""Text out of trained models: continuing a prompt, translating sentences; what tasks show of them.

The functions behind `Task.generate`, `Task.continue_text` and `Task.translate` of jaxdl.api.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdl.api import facts_of
from jaxdl.errors import UserError
from jaxdl.models import decode
from jaxdl.models.decode import Sampling

# Sentences translated by one call; with 4 beams that keeps a CPU's and a small GPU's cores busy.
SENTENCES = 64


def nothing() -> None:
    """Where nobody watches for progress."""


def continue_text(
    model: Any,
    variables: dict,
    tokenizer: Any,
    prompt: str,
    *,
    count: int = 1,
    length: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[str]:
    """`count` continuations of `prompt` by at most `length` tokens, without the prompt itself.

    Raises:
        UserError: prompt and continuation are longer than the model's table of positions.
    """
    ids = np.concatenate([[tokenizer.sep], tokenizer.encode(prompt)]).astype(np.int32)
    limit = room(model)
    if limit is not None and len(ids) + length > limit:
        raise UserError(
            f'the prompt has {len(ids) - 1} tokens and {length} shall follow, but the model has '
            f'positions for {limit - 1} in all; give a shorter prompt, or at most '
            f'--tokens={max(limit - len(ids), 0)}'
        )
    # Padded on the left to a power of two, so prompts of many lengths share a compiled program.
    width = 1 << (len(ids) - 1).bit_length()
    if limit is not None:
        width = max(len(ids), min(width, limit - length))
    tokens = np.full((count, width), tokenizer.pad, np.int32)
    tokens[:, width - len(ids) :] = ids
    segments = np.zeros((count, width), np.int32)
    segments[:, width - len(ids) :] = 1
    found, lengths = jax.device_get(
        decode.generate(
            model,
            variables,
            tokens,
            jax.random.key(seed),
            length=length,
            segments=segments,
            sampling=sampling,
            end_token=tokenizer.sep,
        )
    )
    return [tokenizer.decode(row[:n]) for row, n in zip(found, lengths, strict=True)]


def room(model: Any) -> int | None:
    """The most tokens the model has positions for; None: no limit."""
    return facts_of(model).limits().length


def translate(
    model: Any,
    variables: dict,
    tokenizer: Any,
    sentences: Sequence[str],
    *,
    length: int,
    source_length: int,
    beams: int = 4,
    length_penalty: float = 0.6,
    cut: bool = False,
    beat: Callable[[], None] = nothing,
) -> list[str]:
    """Translations of `sentences`, in their order; an empty sentence stays empty.

    Sentences of similar length are translated together, padded to a power of two, so few programs
    are compiled.

    Args:
        model: an encoder–decoder.
        variables: its variables.
        tokenizer: of both sides.
        sentences: one text each.
        length: most tokens of a translation.
        source_length: most tokens of a sentence, its end included.
        beams: width of the search; 1: greedy.
        length_penalty: above 0 prefers longer translations.
        cut: whether longer sentences are cut; otherwise they are an error.
        beat: called after each batch.

    Raises:
        UserError: a sentence is too long and `cut` is False.
    """
    encoded = [tokenizer.encode(sentence) for sentence in sentences]
    for index, ids in enumerate(encoded):
        if len(ids) + 1 > source_length:
            if not cut:
                raise UserError(
                    f'sentence {index + 1} has {len(ids)} tokens, but the model was trained for at '
                    f'most {source_length - 1} (data.source_length); split it: {sentences[index][:60]!r}'
                )
            encoded[index] = ids[: source_length - 1]
    found = [''] * len(sentences)
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        if len(encoded[index]):
            width = min(max(16, 1 << len(encoded[index]).bit_length()), source_length)
            groups.setdefault(width, []).append(index)
    for width, indices in groups.items():
        for start in range(0, len(indices), SENTENCES):
            part = indices[start : start + SENTENCES]
            source = np.full((SENTENCES, width), tokenizer.pad, np.int32)
            segments = np.zeros((SENTENCES, width), np.int32)
            for row in range(SENTENCES):  # the last batch repeats its first sentence
                ids = encoded[part[row] if row < len(part) else part[0]]
                source[row, : len(ids)], source[row, len(ids)] = ids, tokenizer.sep
                segments[row, : len(ids) + 1] = 1
            tokens, lengths = jax.device_get(
                decode.translate(
                    model,
                    variables,
                    source,
                    segments,
                    length=min(length, 2 * width + 16),
                    begin_token=tokenizer.sep,
                    end_token=tokenizer.sep,
                    beams=beams,
                    length_penalty=length_penalty,
                )
            )
            for row, index in enumerate(part):
                text = tokenizer.decode(tokens[row, : lengths[row]])
                found[index] = ' '.join(text.split('\n'))
            beat()
    return found


def fenced(text: str) -> str:
    """`text` as a block of Markdown that shows it as it is."""
    ticks = '```'
    while ticks in text:
        ticks += '`'
    return f'{ticks}\n{text}\n{ticks}'
