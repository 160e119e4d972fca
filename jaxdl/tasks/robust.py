"""Classification under attack: adversarial training, and accuracy within a stated budget."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Apply, DataSet, Generated
from jaxdl.errors import at_least
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.tasks.attack import Attack
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.intervals import bounds
from jaxdl.tasks.pictures import as_bytes, id_keys, tiled

Batch = dict[str, jax.Array]
SHOWN = 16  # images in the picture of adversarial examples


@dataclasses.dataclass
class Robust(Classification):
    """Ordinary training; the evaluation measures the accuracy under attack too.

    Attributes:
        attack: what the evaluation's adversary may do; it sees the weights.
        certify: also measure the share of images that no change within the attack's L∞ radius can make wrong, by interval bounds (arXiv:1810.12715); for small networks.
    """

    attack: Attack = dataclasses.field(default_factory=lambda: Attack(steps=20, step_size=0.01))
    certify: bool = False

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """The metrics of clean images, and robust_accuracy: the share that the attack leaves right.

        The attack's random starts follow from batch['id'].
        """
        images, labels, mask = pixels(batch), batch['label'], batch['mask']
        logits = self._logits(apply, batch)
        _, fooled = self.attack.worst(logits, images, labels, id_keys(batch))
        metrics = self.eval_metrics(logits(images), batch)
        metrics['robust_accuracy'] = Mean.of(~fooled, mask)
        if self.certify:
            # The box holds the L2 ball of the same radius, so the certificate is sound for both.
            low = jnp.clip(images - self.attack.radius, 0, 1)
            high = jnp.clip(images + self.attack.radius, 0, 1)
            found = bounds(lambda x: worst_margin(logits(x), labels), low, high)
            metrics['certified_accuracy'] = Mean.of(found.high < 0, mask)
        return metrics

    def generate(
        self,
        model: Any,
        variables: Any,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated:
        """The budget as a note; at the end a picture of images, attacked ones and their difference."""
        found = Generated()
        for name, source in data.eval_sources().items():
            found.notes[f'{name}/robust_accuracy'] = self.attack.budget()
            if not final:
                continue
            ids = np.arange(min(SHOWN, len(source)))
            batch = {key: jnp.asarray(value) for key, value in source.fetch(ids).items()}
            attacked = jax.device_get(
                _attacked(self, model, variables, {**batch, 'id': jnp.asarray(ids)})
            )
            clean = np.asarray(pixels(batch))
            apart = attacked - clean
            shade = 0.5 + apart / (2 * max(float(np.abs(apart).max()), 1e-6))
            rows = np.concatenate([clean, attacked, shade])
            found.pictures[f'{name}/attacked'] = tiled(as_bytes(2 * rows - 1), len(clean))
            beat()
        return found

    def _logits(self, apply: Apply, batch: Batch) -> Callable[[jax.Array], jax.Array]:
        return lambda images: self._outputs(apply, batch, images, train=False)

    def _outputs(self, apply: Apply, batch: Batch, images: jax.Array, *, train: bool) -> jax.Array:
        inputs: dict[str, Any] = self.inputs({**batch, 'image': images})
        return apply(**inputs, train=train)


@dataclasses.dataclass
class Adversarial(Robust):
    """Learns from attacked images in the place of clean ones (arXiv:1412.6572, arXiv:1706.06083).

    The attack sees the network as in evaluation (running statistics, no dropout); the loss at the
    point that it found is the ordinary one.

    Attributes:
        training: the attack in training; its restarts are not used.
    """

    training: Attack = dataclasses.field(default_factory=Attack)

    def check(self):
        super().check()
        if self.training.restarts != 1:
            raise ValueError(
                f'training.restarts={self.training.restarts}: training attacks once; must be 1'
            )

    def losses(self, apply: Apply, batch: Batch, rng: jax.Array) -> dict[str, Mean]:
        """loss and robust_accuracy, both of the attacked images."""
        logits = self._logits(apply, batch)

        def rise(images):
            return self.training.rise(logits(images), batch['label'])

        images = self.training.perturbed(rise, pixels(batch), id_keys(batch, rng))
        metrics = self.metrics(self._outputs(apply, batch, images, train=True), batch)
        return {'robust_accuracy': metrics.pop('accuracy'), **metrics}


@dataclasses.dataclass
class Trades(Adversarial):
    """The loss of clean images, and β times how far an attack moves the prediction (arXiv:1901.08573).

    The attack climbs the divergence from the clean prediction, which is flat at the image itself.

    Attributes:
        beta: weight of the divergence; more of it trades accuracy for robustness.
    """

    scalars: ClassVar[tuple[str, ...]] = (*Classification.scalars, 'beta')

    beta: float = 6.0

    def check(self):
        super().check()
        at_least(self, beta=0)
        if not self.training.random_start:
            raise ValueError(
                'training.random_start=False: the divergence has no gradient at the image itself; '
                'must be True'
            )

    def losses(self, apply: Apply, batch: Batch, rng: jax.Array) -> dict[str, Mean]:
        """loss, accuracy of clean images, robust_accuracy of attacked ones, and the divergence."""
        logits = self._logits(apply, batch)
        clean = jax.lax.stop_gradient(logits(pixels(batch)))
        attacked = self.training.perturbed(
            lambda images: divergence(clean, logits(images)), pixels(batch), id_keys(batch, rng)
        )
        outputs = self._outputs(apply, batch, pixels(batch), train=True)
        moved = self._outputs(apply, batch, attacked, train=True)
        metrics = self.metrics(outputs, batch)
        apart = Mean.of(divergence(outputs, moved), batch.get('mask'))
        loss = metrics['loss']
        return {
            **metrics,
            'loss': Mean(loss.total + self.beta * apart.total, loss.weight),
            'divergence': apart,
            'robust_accuracy': self.metrics(moved, batch)['accuracy'],
        }


def pixels(batch: Batch) -> jax.Array:
    """The images as float32 in [0, 1]."""
    images = batch['image']
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)


def divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """The Kullback-Leibler divergence of the predictions `q` from `p` (logits), in nats, [batch]."""
    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return (jnp.exp(p) * (p - q)).sum(-1)


def worst_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """By how much the best wrong logit exceeds that of the label, written for interval bounds."""
    right = jax.nn.one_hot(labels, logits.shape[-1])
    own = (logits * right).sum(-1)
    return (logits - 1e9 * right).max(-1) - own


def _attacked(task: Robust, model: Any, variables: Any, batch: Batch) -> jax.Array:
    """The worst image found for each row."""

    @jax.jit
    def find(variables, batch):
        logits = task._logits(Applied.of(model, variables), batch)
        return task.attack.worst(logits, pixels(batch), batch['label'], id_keys(batch))[0]

    return find(variables, batch)
