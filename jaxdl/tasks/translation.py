"""Translation by an encoder and a decoder that is shown the right answer so far."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax

from jaxdl.api import Generated, Limits, Task
from jaxdl.errors import at_least, below_one
from jaxdl.metrics import Mean
from jaxdl.tasks import bleu, generation
from jaxdl.tasks.losses import perplexity, row_metrics, row_weights, token_metrics

INPUTS = (
    'source',
    'target',
    'source_segments',
    'target_segments',
    'source_positions',
    'target_positions',
)


@dataclasses.dataclass
class Translation(Task):
    """Cross entropy of the next target token, given the source and the target so far.

    The batch holds 'source' [batch, source time], 'target' and 'targets' [batch, time], their
    segments (0 is padding) and positions, all int32; several pairs may share a row. Labels are
    smoothed in training only, so the evaluation's loss and perplexity are the model's own.

    Attributes:
        label_smoothing: share of the target spread evenly over the vocabulary (arXiv:1512.00567).
        bleu_examples: pairs of each evaluation set, from its start, that are translated for BLEU and chrF in the final evaluation; 0: none.
        beams: width of the search in translating; 1: greedy.
        length_penalty: above 0 prefers longer translations.
    """

    scalars: ClassVar[tuple[str, ...]] = ('label_smoothing',)

    label_smoothing: float = 0.1
    bleu_examples: int = 0
    beams: int = 4
    length_penalty: float = 0.6

    def check(self):
        at_least(self, bleu_examples=0, beams=1)
        below_one(self, 'label_smoothing')

    def ranges(self, limits: Limits) -> dict[str, int]:
        names = ('source', 'target', 'targets')
        return {name: limits.vocab for name in names if limits.vocab is not None}

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in INPUTS}

    def metrics(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss of the smoothed labels (nats a token) and accuracy."""
        weights = row_weights(batch, batch['target_segments'] > 0)
        return token_metrics(outputs, batch['targets'], weights, self.label_smoothing)

    def eval_metrics(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss of the true labels (nats a token), accuracy, and bits_per_byte where sizes are known."""
        weights = row_weights(batch, batch['target_segments'] > 0)
        size = row_weights(batch, batch['bytes']) if 'bytes' in batch else None
        return token_metrics(outputs, batch['targets'], weights, size=size)

    def predictions(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """How well each target is predicted: 'loss', 'accuracy', 'token_count', 'bits_per_byte'."""
        counted, size = batch['target_segments'] > 0, batch.get('bytes')
        return row_metrics(outputs, batch['targets'], counted, size)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """perplexity of a target token, where the loss is not smoothed."""
        smooth = self.label_smoothing != 0 and 'bits_per_byte' not in means
        if smooth or 'loss' not in means:
            return {}
        return {'perplexity': perplexity(means['loss'])}

    def generate(
        self, model: Any, variables: dict, data: Any, *, final: bool, beat: Callable[[], None]
    ) -> Generated:
        """In the final evaluation, BLEU and chrF of each evaluation set, and some translations."""
        found = Generated()
        if not (final and self.bleu_examples):
            return found
        for name in data.eval_names():
            pairs = data.eval_texts(name)[: self.bleu_examples]
            sources = [source for source, _ in pairs]
            references = [reference for _, reference in pairs]
            written = self.translate(model, variables, data, sources, cut=True, beat=beat)
            scores = bleu.corpus_scores(written, references)
            for key, value in scores.items():
                if isinstance(value, str):
                    found.notes[f'{name}/{key}'] = value
                else:
                    found.scores[f'{name}/{key}'] = value
            rows = list(zip(sources, references, written, strict=True))[:10]
            head = [
                f'{title} {scores[key]:.2f}  {scores[f"{key}_signature"]}'
                for title, key in (('BLEU', 'bleu'), ('chrF', 'chrf'))
            ]
            shown = [f'source:    {a}\nreference: {b}\nmodel:     {c}' for a, b, c in rows]
            found.texts[f'{name}/translations'] = '\n\n'.join(
                generation.fenced(text) for text in ('\n'.join(head), *shown)
            )
        return found

    def translate(
        self, model: Any, variables: dict, data: Any, sentences: Sequence[str], **options: Any
    ) -> list[str]:
        """Translations of `sentences`; the options are those of generation.translate."""
        options = {'beams': self.beams, 'length_penalty': self.length_penalty, **options}
        return generation.translate(
            model,
            variables,
            data.tokenizer,
            sentences,
            length=data.target_length,
            source_length=data.source_length,
            **options,
        )
