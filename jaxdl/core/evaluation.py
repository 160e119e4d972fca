"""Exact evaluation: every example of each evaluation set counts once, on any number of devices."""

from collections.abc import Callable

import jax
import numpy as np

from jaxdl.api import Generated, Source
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.feed import Feed
from jaxdl.core.program import Program
from jaxdl.core.ranges import bounds_of
from jaxdl.core.step import COUNT, TrainState
from jaxdl.errors import UserError, nearest
from jaxdl.metrics import MetricPacking


class Evaluator:
    """Evaluates a state on all evaluation sets; each set's step compiles at its first use.

    Args:
        program: the run's compiled functions.
        sources: {name: source}.
    """

    def __init__(self, program: Program, sources: dict[str, Source]):
        self.program = program
        config: Config = program.config
        size = config.eval_batch_size or config.batch_size
        if sources:
            name = 'eval_batch_size' if config.eval_batch_size else 'batch_size'
            mesh_lib.check_batch(name, size, 1, program.mesh)
        self.feeds = {
            name: Feed(
                source,
                size,
                program.mesh,
                placement=config.placement,
                ranges=bounds_of(config),
                name=name,
            )
            for name, source in sources.items()
        }
        self.packings: dict[str, MetricPacking] = {
            name: program.eval_packing(feed.abstract(mask=True), feed.resident)
            for name, feed in self.feeds.items()
        }
        self._compiled: dict[str, Callable] = {}

    def compile(self) -> None:
        for name, feed in self.feeds.items():
            if name not in self._compiled:
                self._compiled[name] = self.program.compile_eval(
                    feed.abstract(mask=True), feed.resident, self.packings[name]
                )

    def names(self) -> list[str]:
        """The names of the scalar metrics that `run` returns; nothing is compiled or run."""
        found = []
        for name, packing in self.packings.items():
            means = packing.means(np.ones(packing.size))
            floats = [key for key, value in means.items() if isinstance(value, float)]
            found += [f'eval/{name}/{key}' for key in (*floats, *self._derived(means), 'examples')]
        return sorted(found)

    def _derived(self, means: dict[str, float | np.ndarray]) -> dict[str, float]:
        """The metrics that the task derives from the means of a whole set, such as a perplexity."""
        return self.program.config.task.derived(means)

    def run(
        self, state: TrainState, hyper: dict, beat: Callable[[], None]
    ) -> list[dict[str, float | np.ndarray]]:
        """For each lane {'eval/<set>/<metric>': float or matrix}, with the examples of each set."""
        self.compile()
        found: list[dict[str, float | np.ndarray]] = [{} for _ in range(self.program.lanes or 1)]
        for name, feed in self.feeds.items():
            step, packing = self._compiled[name], self.packings[name]
            totals = np.zeros((len(found), packing.size), np.float64)
            waiting: list[jax.Array] = []
            for batch in feed.evaluation(ahead=self.program.config.prefetch):
                waiting.append(step(state, batch, feed.resident, hyper))
                waiting[-1].copy_to_host_async()
                if len(waiting) > 2:
                    totals += np.asarray(waiting.pop(0), np.float64)
                    beat()
            for packed in waiting:
                totals += np.asarray(packed, np.float64)
            for row, total in zip(found, totals, strict=True):
                means = packing.means(total)
                means |= self._derived(means)
                row |= {f'eval/{name}/{key}': value for key, value in means.items()}
                row[f'eval/{name}/examples'] = float(packing.unpack(total)[COUNT][0])
            beat()
        return found

    def generate(
        self, state: TrainState, beat: Callable[[], None], *, final: bool
    ) -> Generated | None:
        """Texts, such as translations, that one run's model generates, and their scores."""
        task = self.program.config.task
        if not task.defines('generate'):
            return None
        variables = readable_variables(state)
        if variables is None:
            return None
        return task.generate(
            self.program.config.model,
            variables,
            self.program.config.data,
            final=final,
            beat=beat,
        )


def check_metric(field: str, metric: str, names: list[str]) -> None:
    """Raises UserError unless `metric`, the value of a field, is empty or one of `names`."""
    if metric and metric not in names:
        raise UserError(
            f'--config.{field}={metric!r} is no metric of an evaluation'
            f'{nearest(metric, names)}; allowed: {", ".join(names) or "none"}'
        )


def readable_variables(state: TrainState) -> dict | None:
    """The variables that evaluation uses, gathered onto one device if every device holds them all.

    None where they are split over several processes: `jaxdl evaluate` can then generate later.
    """
    weights = state.evaluated()
    variables = {'params': weights['params'], **weights['model_state']}
    leaves = jax.tree.leaves(variables)
    if all(leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), variables)
    return variables if all(leaf.is_fully_addressable for leaf in leaves) else None
