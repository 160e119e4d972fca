"""Language modelling: predict the next token."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxdl.api import Generated, Limits, Task
from jaxdl.errors import at_least
from jaxdl.metrics import Mean
from jaxdl.tasks import generation
from jaxdl.tasks.losses import perplexity, row_metrics, row_weights, token_metrics


@dataclasses.dataclass
class LanguageModel(Task):
    """Cross entropy of the next token, over the tokens that the batch marks.

    The batch holds 'tokens', 'targets', 'segments', 'positions' int32 and 'target_mask' bool, all
    [batch, time], and, where the tokenizer knows them, 'bytes' [batch] of the marked targets.

    Attributes:
        sample_tokens: tokens of the text that the model writes at each evaluation, for TensorBoard; 0: none.
        sample_prompt: what that text begins with.
        sample_temperature: its temperature.
    """

    sample_tokens: int = 0
    sample_prompt: str = ''
    sample_temperature: float = 0.8

    def check(self):
        at_least(self, sample_tokens=0, sample_temperature=0)

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in ('tokens', 'segments', 'positions')}

    def metrics(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss (nats a token), accuracy, and bits_per_byte where sizes are known."""
        weights = row_weights(batch, batch['target_mask'])
        size = row_weights(batch, batch['bytes']) if 'bytes' in batch else None
        return token_metrics(outputs, batch['targets'], weights, size=size)

    def predictions(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """How well each text is predicted: 'loss', 'accuracy', 'token_count', 'bits_per_byte'."""
        size = batch.get('bytes')
        return row_metrics(outputs, batch['targets'], batch['target_mask'], size)

    def ranges(self, limits: Limits) -> dict[str, int]:
        return {n: limits.vocab for n in ('tokens', 'targets') if limits.vocab is not None}

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """perplexity: exp of the mean loss of a token; it depends on the tokenizer."""
        return {'perplexity': perplexity(means['loss'])} if 'loss' in means else {}

    def generate(
        self, model: Any, variables: dict, data: Any, *, final: bool, beat: Callable[[], None]
    ) -> Generated:
        """Two sample texts, always from the same random numbers, so they compare over a run."""
        del final, beat
        if not self.sample_tokens:
            return Generated()
        texts = generation.continue_text(
            model,
            variables,
            data.tokenizer,
            self.sample_prompt,
            count=2,
            length=self.sample_tokens,
            sampling=generation.Sampling(temperature=self.sample_temperature),
        )
        shown = '\n\n'.join(generation.fenced(self.sample_prompt + text) for text in texts)
        return Generated(texts={'sample': shown})

    def continue_text(
        self, model: Any, variables: dict, data: Any, prompt: str, **options: Any
    ) -> list[str]:
        """Continuations of `prompt`; the options are those of generation.continue_text."""
        return generation.continue_text(model, variables, data.tokenizer, prompt, **options)
