"""What the core asks of a model, a task, a data set and a source: base classes with defaults.

Every optional method is here, with what it means and what holds where a class does not define it.
The core calls these methods and probes for no others, and `jaxdl.core.config.check` refuses a
config whose task or data set is of another kind.

Shapes: a batch is a dict of arrays [batch, …]; `batch['mask']` float32 [batch] is 0 on the rows
that only fill up an evaluation batch.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxdl.errors import UserError

if TYPE_CHECKING:  # data workers import this module, and none of them needs jax
    import flax.linen as nn
    import jax

    from jaxdl.metrics import Mean

Rows = dict[str, np.ndarray]
Batch = dict[str, 'jax.Array']
# A tree (nested dicts, tuples, dataclasses) of arrays or of what stands for them, as shapes and
# shardings: parameters, a model's other variables. No type checker can say what is inside.
Tree = Any


class Source(abc.ABC):
    """A set of examples with random access."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def fetch(self, ids: np.ndarray) -> Rows:
        """The rows `ids` (int64), in that order: new arrays [len(ids), …] of the same shapes always."""

    def in_memory(self) -> Rows | None:
        """The whole set as arrays [examples, …] if it is in memory, else None."""
        return None

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        """For `jaxdl benchmark`: (name, function returning (records, bytes)) of each stage of `fetch`."""
        del ids
        return iter(())


class DataSet(abc.ABC):
    """The `data` of a config: where examples come from.

    Attributes:
        places: fields that only say where data lies; a resume may change them where `fingerprint`
            says that the bytes are the same.
        kept: names of the files that `keep` writes.
    """

    places: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def train_source(self) -> Source:
        """The training examples."""

    def eval_sources(self) -> dict[str, Source]:
        """The evaluation sets by name; each is evaluated whole."""
        return {}

    def example(self) -> Rows | None:
        """One example of zeros, known without reading a file; None: a source has to be read."""
        return None

    def class_names(self) -> tuple[str, ...]:
        """The names of the labels in order, () where they have none."""
        return ()

    def check_with(self, model: 'nn.Module', task: 'Task') -> None:
        """Raises UserError where model or task cannot take these examples."""

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        """{'train': hash, 'eval/<name>': hash} of all bytes that decide the examples, wherever they lie.

        {}: not known. train=False leaves the training set out, which may be gone then.
        """
        del train
        return {}

    def keep(self, folder: str | os.PathLike) -> None:
        """Saves into a run's folder what the weights depend on, such as a tokenizer.

        Raises UserError where the folder holds another one.
        """

    def recall(self, folder: str | os.PathLike) -> None:
        """Takes from a run's folder what `keep` saved there."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a model can take; None: not limited, or not known.

    Attributes:
        vocab: token ids must be below it.
        length: most tokens of a row.
        classes: labels must be below it.
    """

    vocab: int | None = None
    length: int | None = None
    classes: int | None = None


class Model:
    """What a Flax module of a config may say of itself; put it before `nn.Module` among the bases.

    Attributes:
        sharding: pairs (pattern of a parameter's path, mesh axes), as `config.rules` has them.
        splits: mesh axes besides data and fsdp over which the model can be split.
        matrices: pairs (pattern of a parameter's path, how many of its first axes count layers) of
            the hidden matrices, which an optimizer of matrices such as Muon may orthogonalise.
            Embeddings, the first and the last layer, norms and biases are none. A kernel of a
            convolution is one, [height * width * in, out].
    """

    sharding: ClassVar[tuple] = ()
    splits: ClassVar[tuple[str, ...]] = ()
    matrices: ClassVar[tuple[tuple[str, int], ...]] = ()

    def limits(self) -> Limits:
        """What tokens, rows and labels the model can take."""
        return Limits()


class Predictions(abc.ABC):
    """A model's outputs for a large vocabulary, which form their loss without all of their logits.

    Attributes:
        vocab: number of tokens; labels are below it.
        next_sentence: [batch, 2] logits of BERT's second objective, or None.
    """

    vocab: int = 0
    next_sentence: 'jax.Array | None' = None

    @abc.abstractmethod
    def cross_entropy(
        self,
        labels: 'jax.Array',
        label_smoothing: 'float | jax.Array' = 0.0,
        weights: 'jax.Array | None' = None,
    ) -> 'tuple[jax.Array, jax.Array]':
        """(float32 loss in nats, most likely token), both of `labels`' shape.

        `weights` of that shape multiply the losses; given here they may save work.
        """

    @abc.abstractmethod
    def at(self, places: 'jax.Array') -> 'Predictions':
        """Those at `places` [batch, places] alone, so that no work is done for the others."""


_ANY_MODEL = Model()


def facts_of(model: 'nn.Module | Model') -> Model:
    """`model`, or the defaults of Model for a Flax module that does not derive from it.

    Raises:
        UserError: it defines one of Model's names without deriving from it, so that it would be
            ignored.
    """
    if isinstance(model, Model):
        return model
    names = [
        name for name in ('sharding', 'splits', 'matrices', 'limits') if name in dir(type(model))
    ]
    if names:
        raise UserError(
            f'--config.model: {type(model).__name__} defines {names[0]!r} but does not derive from '
            f'jaxdl.api.Model; write class {type(model).__name__}(Model, nn.Module)'
        )
    return _ANY_MODEL


@dataclasses.dataclass
class Generated:
    """What a model was asked to make after an evaluation.

    Attributes:
        scores: {'<set>/<metric>': value}, which join the evaluation's metrics.
        texts: {name: text in Markdown}, to be looked at.
        notes: {name: text}, how the scores were computed.
    """

    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


class Task(abc.ABC):
    """What a model is for: what it is shown, and what its outputs are worth."""

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The keyword arguments of the model's call, besides `train`."""

    @abc.abstractmethod
    def metrics(self, outputs: Any, batch: Batch) -> 'dict[str, Mean]':
        """The metrics as sums and weights; 'loss' is what training minimises.

        Raises ValueError where the outputs do not fit.
        """

    def eval_metrics(self, outputs: Any, batch: Batch) -> 'dict[str, Mean]':
        """The metrics of an evaluation batch, under batch['mask']."""
        return self.metrics(outputs, batch)

    def augment(self, batch: Batch, rng: 'jax.Array') -> Batch:
        """A training batch after random changes, made on the device; `rng` is a key."""
        del rng
        return batch

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """What follows from the means of an interval or a whole set, such as a perplexity."""
        del means
        return {}

    def ranges(self, limits: Limits) -> dict[str, int]:
        """{name: bound} of the integer arrays of a row that must lie in 0 … bound - 1."""
        del limits
        return {}

    def vocabulary(self) -> dict[str, int]:
        """Fields of the task that must equal the tokenizer's: 'vocab_size', 'mask_token'."""
        return {}

    def preview(self, batch: Batch) -> 'dict[str, jax.Array]':
        """Pictures of an augmented batch, {name: uint8 [batch, height, width, channels]}."""
        del batch
        return {}

    def generate(
        self,
        model: 'nn.Module',
        variables: Tree,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated | None:
        """What the model makes after an evaluation.

        `variables` are the model's, on one device; `final` marks the evaluation at the end; `beat`
        is to be called now and then, and raises where a signal came.
        """
        return None

    def continue_text(
        self, model: 'nn.Module', variables: Tree, data: DataSet, prompt: str, **options: Any
    ) -> list[str]:
        """Continuations of `prompt`, for `jaxdl sample`."""
        raise UserError(f'a model trained for {type(self).__name__} continues no text')

    def translate(
        self,
        model: 'nn.Module',
        variables: Tree,
        data: DataSet,
        sentences: Sequence[str],
        **options: Any,
    ) -> list[str]:
        """Translations of `sentences`, for `jaxdl sample --translate`."""
        raise UserError(f'a model trained for {type(self).__name__} translates no text')

    def defines(self, method: str) -> bool:
        """Whether this kind of task has its own form of an optional method."""
        return getattr(type(self), method) is not getattr(Task, method)
