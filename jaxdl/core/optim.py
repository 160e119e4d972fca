"""Optimizers and schedules as small dataclasses over optax.

A schedule is a function of the fraction of the run that is done, so it need not be changed when the
number of steps is. `build(steps)` returns an optax transformation; the learning rate, the weight
decay and the clipping norm may be traced values.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl.api import Tree, facts_of
from jaxdl.errors import at_least, below_one, check_pattern, one_of

MOMENT_DTYPES = ('', 'float32', 'bfloat16')


@dataclasses.dataclass
class Constant:
    """Warm-up, then the full learning rate.

    Attributes:
        warmup: fraction of the run over which the rate rises linearly from 0.
    """

    warmup: float = 0.0

    def check(self):
        if not 0 <= self.warmup <= 1:
            raise ValueError(f'warmup={self.warmup}: is a fraction of the run, in [0, 1]')

    def __call__(self, progress: jax.Array) -> jax.Array:
        """The factor on the learning rate when `progress` (0 to 1) of the run is done."""
        rise = jnp.clip(progress / self.warmup, 0, 1) if self.warmup else 1.0
        return rise * self.decay(
            jnp.clip((progress - self.warmup) / max(1 - self.warmup, 1e-9), 0, 1)
        )

    def decay(self, progress: jax.Array) -> jax.Array:
        """The factor after the warm-up, of which `progress` (0 to 1) is done."""
        return jnp.ones_like(progress)


@dataclasses.dataclass
class Linear(Constant):
    """Warm-up, then a straight line down to `final`.

    Attributes:
        final: factor on the learning rate at the end.
    """

    final: float = 0.0

    def check(self):
        super().check()
        if not 0 <= self.final <= 1:
            raise ValueError(f'final={self.final}: is a factor on the learning rate, in [0, 1]')

    def decay(self, progress):
        return 1 - (1 - self.final) * progress


@dataclasses.dataclass
class Cosine(Linear):
    """Warm-up, then half a cosine down to `final` (arXiv:1608.03983)."""

    def decay(self, progress):
        return self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(math.pi * progress))


@dataclasses.dataclass
class InverseSqrt(Constant):
    """Warm-up, then the inverse square root of the progress (Vaswani et al., arXiv:1706.03762)."""

    def check(self):
        super().check()
        if not self.warmup:
            raise ValueError('warmup=0: the inverse square root needs a warm-up above 0')

    def __call__(self, progress):
        return jnp.minimum(
            progress / self.warmup, jnp.sqrt(self.warmup / jnp.maximum(progress, 1e-9))
        )


NORMS_AND_BIASES = (r'(^|/)bias$', r'(^|/)scale$', r'(^|/)b$')


@dataclasses.dataclass
class Optimizer:
    """What all optimizers share: the rate, its schedule, weight decay by path, clipping.

    Attributes:
        learning_rate: peak learning rate.
        schedule: the factor on it over the run.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        no_decay: patterns of parameter paths that are not decayed.
        clip_norm: largest global norm of the gradient; 0: no clipping.
    """

    scalars: ClassVar[tuple[str, ...]] = ('learning_rate', 'weight_decay', 'clip_norm')
    decay_first: ClassVar[bool] = False  # True: weight decay is added to the gradient

    learning_rate: float = 1e-3
    schedule: Callable[[jax.Array], jax.Array] = dataclasses.field(default_factory=Cosine)
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = NORMS_AND_BIASES
    clip_norm: float = 0.0

    def check(self):
        at_least(self, learning_rate=0, weight_decay=0, clip_norm=0)
        for pattern in self.no_decay:
            check_pattern(pattern)

    def rate(self, step: jax.Array, steps: int) -> jax.Array:
        """The learning rate of the update that follows `step` completed ones.

        The update counts as half done (step + 1/2), so that the first is not 0 under a warm-up and
        the last is not 0 under a decay to 0.
        """
        return self.learning_rate * self.schedule((step + 0.5) / steps)

    def groups(self) -> dict[str, 'Optimizer']:
        """{'': this optimizer}: one group holds all parameters."""
        return {'': self}

    def for_model(self, model: nn.Module) -> 'Optimizer':
        """This optimizer, completed with facts about the model's parameters if it needs any.

        Raises ValueError where it needs a fact that the model does not state.
        """
        del model
        return self

    def direction(self) -> optax.GradientTransformation:
        """The update before it is scaled by the learning rate; each subclass defines it."""
        raise TypeError(f'{type(self).__name__} gives no direction')

    def build(self, steps: int) -> optax.GradientTransformation:
        """The whole update as an optax transformation, for a run of `steps`."""
        parts = [self.direction()]
        if not _off(self.weight_decay):
            decay = optax.add_decayed_weights(self.weight_decay, mask=self.decays)
            parts.insert(0 if self.decay_first else 1, decay)
        if not _off(self.clip_norm):
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        parts.append(
            optax.scale_by_learning_rate(lambda count: self.rate(jnp.asarray(count), steps))
        )
        return optax.chain(*parts)

    def decays(self, params: Tree) -> Tree:
        """A tree of booleans: which parameters are decayed."""
        patterns = [re.compile(p) for p in self.no_decay]
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(p.search(path_name(path)) for p in patterns), params
        )


def path_name(path: tuple) -> str:
    """A tree path as 'a/b/c'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _off(value: float | jax.Array) -> bool:
    return isinstance(value, int | float) and value == 0


@dataclasses.dataclass
class Sgd(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum.

    Weight decay is added to the gradient before the momentum, as in torch.optim.SGD.

    Attributes:
        momentum: decay of the velocity; 0: none.
        nesterov: look ahead along the velocity.
        moment_dtype: dtype of the velocity; empty: that of the parameter.
    """

    decay_first: ClassVar[bool] = True

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    moment_dtype: str = ''

    def check(self):
        super().check()
        below_one(self, 'momentum')
        one_of(self, moment_dtype=MOMENT_DTYPES)
        if self.nesterov and not self.momentum:
            raise ValueError('nesterov=True is unused when momentum=0; set nesterov=False')

    def direction(self):
        if not self.momentum:
            return optax.identity()
        kind = self.moment_dtype or None
        return optax.trace(self.momentum, nesterov=self.nesterov, accumulator_dtype=kind)


@dataclasses.dataclass
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101).

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        moment_dtype: dtype of the first moment; empty: that of the parameter.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: str = ''

    def check(self):
        super().check()
        below_one(self, 'b1', 'b2')
        one_of(self, moment_dtype=MOMENT_DTYPES)

    def direction(self):
        return optax.scale_by_adam(
            b1=self.b1, b2=self.b2, eps=self.eps, mu_dtype=self.moment_dtype or None
        )


@dataclasses.dataclass
class Lion(Optimizer):
    """The sign of an interpolated momentum (arXiv:2302.06675); wants a rate 3 to 10 times smaller.

    Attributes:
        b1: interpolation between momentum and gradient in the update.
        b2: decay of the momentum.
        moment_dtype: dtype of the momentum; empty: that of the parameter.
    """

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99
    moment_dtype: str = ''

    def check(self):
        super().check()
        below_one(self, 'b1', 'b2')
        one_of(self, moment_dtype=MOMENT_DTYPES)

    def direction(self):
        return optax.scale_by_lion(b1=self.b1, b2=self.b2, mu_dtype=self.moment_dtype or None)


@dataclasses.dataclass
class Muon(Optimizer):
    """Nesterov momentum orthogonalised by Newton-Schulz for hidden matrices, Adam for all else.

    A convolution's kernel counts as the matrix [height * width * in, out]. Source: Keller Jordan,
    https://kellerjordan.github.io/posts/muon/, whose momentum is not corrected for its start (that
    of optax.contrib.muon is, so the two already differ at the second step).

    Attributes:
        momentum: decay of the momentum.
        adam_ratio: learning rate of the Adam part, relative to learning_rate.
        matrices: which parameters are orthogonalised, as in jaxdl.api.Model; (): those that the model names.
        b1: Adam's decay of the first moment.
        b2: Adam's decay of the second moment.
    """

    scalars: ClassVar[tuple[str, ...]] = (*Optimizer.scalars, 'adam_ratio')

    learning_rate: float = 0.02
    momentum: float = 0.95
    adam_ratio: float = 0.15
    matrices: tuple = ()
    b1: float = 0.9
    b2: float = 0.95

    def check(self):
        super().check()
        below_one(self, 'b1', 'b2', 'momentum')
        for pair in self.matrices:
            try:
                pattern, axes = pair
                re.compile(pattern)
                if axes not in (0, 1):
                    raise ValueError(f'{axes!r} axes that count layers')
            except (TypeError, ValueError, re.error) as error:
                raise ValueError(
                    f'matrices: {pair!r} is no pair (pattern of a path, 0; 1 if stacked): {error}'
                ) from None

    def for_model(self, model):
        matrices = self.matrices or facts_of(model).matrices
        if not matrices:
            raise ValueError(
                f'Muon: {type(model).__name__} does not say which of its parameters are hidden '
                'matrices; give optimizer.matrices or the model its `matrices` (jaxdl.api.Model)'
            )
        return dataclasses.replace(self, matrices=matrices)

    def direction(self):
        muon = optax.chain(
            optax.trace(self.momentum, nesterov=True),
            optax.scale(1 - self.momentum),  # the source averages gradients; optax.trace sums them
            optax.stateless(self._orthogonalised),
        )
        adam = optax.chain(
            optax.scale_by_adam(b1=self.b1, b2=self.b2), optax.scale(self.adam_ratio)
        )
        return optax.multi_transform({'muon': muon, 'adam': adam}, self.labels)

    def _layer_axes(self, path: tuple) -> int | None:
        """How many leading axes of a parameter count layers; None: it is not a hidden matrix."""
        name = path_name(path)
        return next((axes for pattern, axes in self.matrices if re.search(pattern, name)), None)

    def labels(self, params: Tree) -> Tree:
        """A tree of 'muon' and 'adam': which part updates each parameter."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: 'adam' if self._layer_axes(path) is None else 'muon', params
        )

    def _orthogonalised(self, updates, params):
        del params

        def one(path, update):
            layers = update.shape[: self._layer_axes(path)]
            matrix = update.reshape(*layers, -1, update.shape[-1])
            rows, columns = matrix.shape[-2:]
            # The factor keeps the size of the outputs' change independent of the layer's shape.
            return orthogonal(matrix).reshape(update.shape) * max(1, columns / rows) ** 0.5

        return jax.tree_util.tree_map_with_path(one, updates)


@dataclasses.dataclass
class Groups:
    """An optimizer of its own for each group of parameters.

    A subclass has one field for each group. Its name is a top-level name of the model's parameters,
    its value an Optimizer, which sees the paths below that name.
    """

    def check(self):
        for name, value in vars(self).items():
            if not isinstance(value, Optimizer):
                raise ValueError(f'{name}={value!r}: must be an optimizer of jaxdl.core.optim')

    def groups(self) -> dict[str, Optimizer]:
        """{name of a group: its optimizer}."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def for_model(self, model: nn.Module) -> 'Groups':
        """See Optimizer.for_model."""
        return dataclasses.replace(
            self, **{name: one.for_model(model) for name, one in self.groups().items()}
        )


@dataclasses.dataclass
class SacGroups(Groups):
    """The optimizers of soft actor-critic (jaxdl.tasks.sac).

    Attributes:
        actor: of the policy.
        critic: of the two critics.
        temperature: of the temperature.
    """

    actor: Optimizer
    critic: Optimizer
    temperature: Optimizer


@dataclasses.dataclass
class Players(Groups):
    """Optimizers of a generator and of the critic that it is trained against.

    Attributes:
        generator: of params['generator'].
        critic: of params['critic'].
    """

    generator: Optimizer
    critic: Optimizer


def orthogonal(matrix: jax.Array) -> jax.Array:
    """A matrix [..., rows, columns] with its singular values brought near 1, by Newton-Schulz.

    Five iterations with Keller Jordan's coefficients leave them between about 0.7 and 1.2.
    """
    high = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if high else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if high else x
