"""What the core asks of a model, a task, a data set and a source: base classes with defaults.

Every optional method is here, with its meaning and its default. The core calls no other methods,
and `jaxdl.core.config.check` refuses a config whose task or data set has another base class.

Shapes: a batch is a dict of arrays [batch, …]; `batch['mask']` float32 [batch] is 0 on the rows
that only fill up an evaluation batch.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from jaxdl.errors import UserError

if TYPE_CHECKING:  # data workers import this module and should not have to import jax
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
        """The rows `ids` (int64) in that order: new arrays [len(ids), …], always of one shape."""

    def in_memory(self) -> Rows | None:
        """The whole set as arrays [examples, …] if it is in memory, else None."""
        return None

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        """For `jaxdl benchmark`: each stage of `fetch`, (name, function to (records, bytes))."""
        del ids
        return iter(())


@dataclasses.dataclass
class Inputs:
    """What somebody brings to a trained model, as rows like those it was trained on.

    Attributes:
        source: the rows; arrays that only training needs, such as labels, may be missing.
        names: what each input is called beside its prediction, such as its file; (): by number.
        owner: int64 [rows], the input that each row is a part of; None: row i is input i.
    """

    source: Source
    names: Sequence[str] = ()
    owner: np.ndarray | None = None


class DataSet(abc.ABC):
    """The `data` of a config: where examples come from.

    Attributes:
        places: fields that only say where files are; a resume may change them if `fingerprint`
            shows the same bytes.
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
        """One example of zeros with the shapes and dtypes of all, known without reading a source.

        None: it is not known.
        """
        return None

    def class_names(self) -> tuple[str, ...]:
        """The names of the labels in order; () if they have none."""
        return ()

    def inputs_from(self, given: Any, row: Rows) -> Inputs:
        """What a user gives a trained model to predict, as rows; no file of the training is read.

        `given` is a path, a list of paths, or a list of texts or of pairs; arrays by the names of a
        row never come here. `row` is one row of the training set; only shapes and dtypes count.
        """
        del given
        raise UserError(
            f'{type(self).__name__} takes arrays only: a .npz file with {", ".join(row)}, or a dict '
            'of arrays; what a file or folder means to it, its method inputs_from would say'
        )

    def shown(self, row: Rows) -> 'str | np.ndarray':
        """One example for a reader: a text, or a picture uint8 [height, width, channels]."""
        image = row.get('image')
        if image is not None and image.ndim == 3 and image.dtype == np.uint8:
            return image
        return ', '.join(f'{name} {np.array2string(v, threshold=8)}' for name, v in row.items())

    def check_with(self, model: 'nn.Module', task: 'Task') -> None:
        """Raises UserError where model or task cannot take these examples.

        Called before the sources: what it needs must be known without them.
        """

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        """{'train': hash, 'eval/<name>': hash, …} of the bytes that decide the examples; {}: unknown.

        The hashes do not depend on where the files are. With train=False the training set is left
        out and may be missing.
        """
        del train
        return {}

    def keep(self, folder: str | os.PathLike) -> None:
        """Saves files that the weights depend on, such as a tokenizer, into a run's folder.

        Raises UserError where the folder holds different ones.
        """

    def recall(self, folder: str | os.PathLike) -> None:
        """Loads the files that `keep` saved in a run's folder."""


class Features(abc.ABC):
    """What images are to a trained network: vectors, by which sets of images are compared."""

    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether a network is named; without one nothing is measured."""

    @abc.abstractmethod
    def name(self) -> str:
        """The network's name, for the names of metrics: letters, digits and '_'."""

    @abc.abstractmethod
    def about(self) -> str:
        """Which network and which of its vectors, in words."""

    @abc.abstractmethod
    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 [n, size] of images uint8 [n, height, width, channels]."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest inputs of a model; None: not limited, or not known.

    Attributes:
        vocab: token ids must be below it.
        length: most tokens of a row.
        classes: labels must be below it.
    """

    vocab: int | None = None
    length: int | None = None
    classes: int | None = None


class Model:
    """Facts that a Flax module may state about itself; put this base class before `nn.Module`.

    Attributes:
        sharding: pairs (pattern of a parameter's path, mesh axes), as `config.rules` has them.
        splits: mesh axes besides data and fsdp over which the model can be split.
        matrices: pairs (pattern of a parameter's path, how many of its first axes count layers) of
            the hidden matrices, which an optimizer of matrices such as Muon may orthogonalise.
            Embeddings, the first and the last layer, norms and biases do not belong here. The
            kernel of a convolution does, as [height * width * in, out].
    """

    sharding: ClassVar[tuple] = ()
    splits: ClassVar[tuple[str, ...]] = ()
    matrices: ClassVar[tuple[tuple[str, int], ...]] = ()

    def limits(self) -> Limits:
        """The largest token id, row length and label that the model can take."""
        return Limits()


class Predictions(abc.ABC):
    """A model's outputs for a large vocabulary; they compute the loss without storing all logits.

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
        """(float32 loss in nats, most likely token), both of the shape of `labels`.

        `weights`, of the same shape, multiply the losses; passing them here may save work.
        """

    @abc.abstractmethod
    def at(self, places: 'jax.Array') -> 'Predictions':
        """The predictions at the positions `places` [batch, places] only, to save work."""


_ANY_MODEL = Model()


def facts_of(model: 'nn.Module | Model') -> Model:
    """`model`, or the defaults of Model for a Flax module that does not derive from it.

    Raises:
        UserError: it defines one of Model's names without deriving from Model, so that the
            definition would be ignored.
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
    """What a model generated after an evaluation.

    Attributes:
        scores: {'<set>/<metric>': value}, added to the evaluation's metrics.
        texts: {name: text in Markdown}, shown in the report.
        pictures: {name: uint8 [height, width, channels]}, shown in TensorBoard and the report.
        notes: {name: text}, how the scores were computed.
    """

    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Drawn:
    """Pictures that a model drew for `jaxdl sample`.

    Attributes:
        images: uint8 [n, height, width, 1 or 3].
        note: how they were drawn, in a few words.
    """

    images: np.ndarray
    note: str = ''


class Apply(Protocol):
    """The model with the weights of the moment, as a task's `losses` and `evaluate` call it.

    With train=True the random stream 'dropout' is there, and what the call changes in the model's
    other variables (running statistics) is kept; the last call counts. With train=False nothing is
    kept. `rngs` adds random streams, `method` names another method of the module.
    """

    def __call__(
        self,
        *args: Any,
        train: bool,
        rngs: 'dict[str, jax.Array] | None' = None,
        method: str | None = None,
        **kwargs: Any,
    ) -> Any: ...


class Learner(abc.ABC):
    """What a task that defines `learn` is given: the parts of a step, to be put together anew.

    The `state` of its methods is the run's TrainState: `params`, `model_state`, `opt_state`,
    `task_state` (what `Task.start` returned) and `step`. Everything is traced and functional.

    Attributes:
        config: the run's config; its scalars may be traced values.
        model: the module in the form in which it is trained.
    """

    config: Any
    model: 'nn.Module'

    @abc.abstractmethod
    def descend(self, state: Any, batch: Batch, rng: 'jax.Array') -> 'tuple[Any, dict[str, Mean]]':
        """The ordinary step: augmentation, the gradient of the task's `losses`, one update."""

    @abc.abstractmethod
    def gradient(self, loss: 'Callable[[Tree], tuple[Mean, Any]]', at: Tree) -> tuple[Tree, Any]:
        """The gradient at `at` of the mean that `loss` returns beside a further result.

        The mean is over the examples of all devices; `loss` sums over those that it is given.
        """

    @abc.abstractmethod
    def update(self, state: Any, grads: Tree, group: str = '') -> Any:
        """`state` after one update of the optimizer by the mean gradient `grads`.

        With config.optimizer an `optim.Groups`, `group` names one, and `grads` are those of
        params[group]; '' updates all groups.
        """


class Task(abc.ABC):
    """What a model is trained for: its inputs, and the loss and metrics of its outputs.

    Most tasks define `inputs` and `metrics`. One whose loss takes more than a call of the model (an
    adversarial example, two passes) defines `losses`. One whose step is more than a gradient of a
    loss (two players, a target network, environments) defines `learn`, and keeps what it needs
    from step to step in the state that `start` returns.

    Attributes:
        sharding: pairs (pattern of a path, mesh axes), as `config.rules` has them, that place the
            task's own state; its paths begin with 'task_state/'.
        draw_options: names of the options that `draw` takes besides 'seed'.
    """

    sharding: ClassVar[tuple] = ()
    draw_options: ClassVar[tuple[str, ...]] = ()

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

    def losses(self, apply: Apply, batch: Batch, rng: 'jax.Array') -> 'dict[str, Mean]':
        """The metrics of a training batch, or of a part of it; the gradient is that of 'loss'.

        `rng` is a key of its own for each step, part and, under pmap, device.
        """
        del rng
        return self.metrics(apply(**self.inputs(batch), train=True), batch)

    def evaluate(self, apply: Apply, batch: Batch) -> 'dict[str, Mean]':
        """The metrics of an evaluation batch, under batch['mask']; must not depend on its size.

        What is random in it must follow from the rows, such as from batch['id'].
        """
        return self.eval_metrics(apply(**self.inputs(batch), train=False), batch)

    def predictions(self, outputs: Any, batch: Batch) -> 'dict[str, jax.Array | Mean]':
        """What the model says of each row, {name: [batch, …]}, for `jaxdl predict` and `jaxdl.load`.

        The batch may lack what only a loss needs. An integer 'label' is written as the name of its
        class. If an input takes several rows, arrays are added up over them, and Means (total and
        weight [batch]) merged.
        """
        raise UserError(
            f'a model trained for {type(self).__name__} predicts nothing: its class does not define '
            'predictions(outputs, batch)'
        )

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: 'jax.Array') -> Tree:
        """The task's own state before the first step, a tree of arrays (no typed keys); None: none.

        It is saved, sharded, checked and restored with the rest of the run's state.
        """
        return None

    def learn(
        self, learner: Learner, state: Any, batch: Batch, rng: 'jax.Array'
    ) -> 'tuple[Any, dict[str, Mean]]':
        """One step: the state with new params, model_state, opt_state and task_state; its metrics.

        'loss' must be among the metrics; a step in which it or a parameter is not finite is
        dropped. The step counter, averages of the weights and the counts of bad steps are the
        core's.
        """
        return learner.descend(state, batch, rng)

    def updates(self, group: str = '') -> int:
        """How often `learn` updates a group in one step; the schedule of its rate counts them."""
        del group
        return 1

    def augment(self, batch: Batch, rng: 'jax.Array') -> Batch:
        """The training batch after random changes; runs on the device, `rng` is a key."""
        del rng
        return batch

    def derived(self, means: dict[str, Any]) -> dict[str, float]:
        """Metrics computed from the means of an interval or a whole set, such as a perplexity.

        A mean is a float; those of a whole set may be arrays too, where the metric is one.
        """
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
        """Texts that the model generates after an evaluation; None: nothing.

        `variables` are the model's, on one device. `final` marks the evaluation at the end. Call
        `beat` often: it tells the watchdog that work goes on, and raises if a signal came.
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

    def draw(
        self, model: 'nn.Module', variables: Tree, data: DataSet, n: int, **options: Any
    ) -> Drawn:
        """`n` pictures, for `jaxdl sample` and for distances between sets of pictures.

        The options are `seed` (int, another seed, other pictures) and those that `draw_options`
        names; only those that were given are there:

            label: int, the class of all pictures; without it the classes take turns.
            guidance: float, the strength of classifier-free guidance.
            steps: int, steps of the sampler.
            sampler: str, its name.
            interpolate: int, pictures of a walk from one picture to another; it divides n.
            inpaint, mask: uint8 [height, width, channels] and bool [height, width], which is True
                where the picture is to be filled in.

        Raises:
            UserError: a value is out of range.
        """
        raise UserError(f'a model trained for {type(self).__name__} draws no pictures')

    def defines(self, method: str) -> bool:
        """Whether this task's class overrides an optional method."""
        return getattr(type(self), method) is not getattr(Task, method)
