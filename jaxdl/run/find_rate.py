"""Which learning rate to begin with: the range test of Smith (arXiv:1506.01186).

A fresh model is trained for a few steps in which every rate rises from a thousandth of the config's
to a hundred times it. Nothing is evaluated or saved.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.feed import Feed
from jaxdl.core.optim import Constant, Optimizer
from jaxdl.core.pipeline import Order
from jaxdl.core.program import Program
from jaxdl.core.ranges import bounds_of
from jaxdl.errors import UserError
from jaxdl.run.start import INIT_ROWS

STEPS = 150
LOW, HIGH = 1e-3, 1e2  # factors on the config's rates
SMOOTH = 0.9  # share of the old average that each step keeps
RISEN = 4.0  # the test ends where the smoothed loss is so many times its smallest value


@dataclasses.dataclass
class Rising(Constant):
    """From LOW to HIGH, by the same factor in each step."""

    def decay(self, progress):
        return LOW * jnp.power(HIGH / LOW, progress)


def rising(config: Config, steps: int) -> Config:
    """The config of the test."""
    optimizer: Any = config.optimizer
    if isinstance(optimizer, Optimizer):
        optimizer = dataclasses.replace(optimizer, schedule=Rising())
    else:
        optimizer = dataclasses.replace(
            optimizer,
            **{
                name: dataclasses.replace(one, schedule=Rising())
                for name, one in optimizer.groups().items()
            },
        )
    return dataclasses.replace(
        config, optimizer=optimizer, steps=steps, steps_per_call=1, ema=0.0, compile='jit'
    )


def losses(config: Config, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(factors on the rates, losses) of the steps, up to where the loss is lost."""
    config = rising(config, steps)
    config_lib.check(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, mesh)
    config.data.check_with(config.model, config.task)
    feed = Feed(
        config.data.train_source(),
        config.batch_size,
        mesh,
        placement=config.placement,
        ranges=bounds_of(config),
    )
    program = Program(config, mesh, feed.example)
    step, packing = program.compile_train(feed.abstract(mask=False), feed.resident)
    order = Order(len(feed.source), config.batch_size, config.seed)
    state = program.init(feed.source.fetch(order.batch(0)[:INIT_ROWS]))
    hyper, found = program.place_hyper(), []
    for index in range(steps):
        batch = feed.place(feed.load(order.batch(index)))
        state, packed = step(state, batch, feed.resident, hyper)
        found.append(float(packing.means(np.asarray(packed, np.float64)).get('loss', math.nan)))
        means = smoothed(np.array(found))
        if not math.isfinite(found[-1]) or means[-1] > RISEN * means.min():
            break
    factors = LOW * (HIGH / LOW) ** ((np.arange(len(found)) + 0.5) / steps)
    return factors, np.array(found)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The exponential average of the values so far, without the bias of its beginning."""
    mean, found = 0.0, []
    for count, value in enumerate(values, 1):
        mean = SMOOTH * mean + (1 - SMOOTH) * value
        found.append(mean / (1 - SMOOTH**count))
    return np.array(found)


def report(config: Config) -> str:
    """A table of rates and losses, and a rate to begin with."""
    factors, found = losses(config)
    means = smoothed(found)
    means = np.where(np.isfinite(means), means, np.inf)
    best = int(means.argmin())
    if not np.isfinite(means[best]) or best == 0:
        raise UserError(
            '--find_lr: the loss never fell; is the learning rate of the config too large?'
        )
    rates = {
        f'config.optimizer.{name + "." * bool(name)}learning_rate': one.learning_rate
        for name, one in config.optimizer.groups().items()
    }
    first = next(iter(rates.values()))
    lines = ['learning rate      loss (smoothed)']
    for row in np.unique(np.linspace(0, len(found) - 1, 20).round().astype(int)):
        mark = '  lowest near here' * bool(abs(row - best) <= len(found) / 40)
        lines.append(f'{first * factors[row]:13.3g}  {means[row]:13.4g}{mark}')
    chosen = ' '.join(f'--{name}={rate * factors[best] / 10:.2g}' for name, rate in rates.items())
    lines.append(f'a tenth of the rate with the lowest loss, to begin with: {chosen}')
    return '\n'.join(lines)
