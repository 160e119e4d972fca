"""What happens when a step was not finite: the message, and the decision of config.divergence."""

from collections.abc import Sequence

import numpy as np

from jaxdl.core.config import Divergence
from jaxdl.core.step import FIRST
from jaxdl.errors import Diverged


class Rollback(Exception):
    """The policy asks for a roll-back to the last checkpoint.

    Attributes:
        step: the step that was not finite.
        message: which array was not finite, from `describe`.
    """

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step, self.message = step, message


def describe(step: int, metrics: dict[str, tuple], suspects: Sequence[str], ids: np.ndarray) -> str:
    """One line: the step, the first leaf that is not finite, the loss, the sample ids.

    `metrics` are the step's, from `MetricPacking.unpack`; `suspects` are from `Steps.suspects`.
    """
    total, weight = metrics['loss']
    first = suspects[int(metrics[FIRST][0])]
    shown = ', '.join(map(str, ids[:8])) + (f', … ({len(ids)} in all)' if len(ids) > 8 else '')
    return (
        f'step {step}: not finite, first {first} (loss {total / weight if weight else total:.4g}); '
        f'sample ids {shown}'
    )


def judge(policy: Divergence, step: int, message: str, *, in_a_row: int, rollbacks: int) -> str:
    """Decides what follows a non-finite step; returns a warning if the run may go on.

    Args:
        policy: the config's.
        step: the step that was not finite.
        message: the line from `describe`.
        in_a_row: updates dropped in a row, including this one.
        rollbacks: roll-backs so far.

    Raises:
        Rollback: the run has to go back.
        Diverged: the run has to end.
    """
    if policy.policy == 'skip' and in_a_row <= policy.max_skips:
        return f'WARNING: {message}; update skipped ({in_a_row} in a row)'
    if policy.policy == 'rollback' and rollbacks < policy.max_rollbacks:
        raise Rollback(step, message)
    limit = {
        'stop': "policy 'stop'",
        'skip': f'{policy.max_skips} updates in a row were skipped',
        'rollback': f'{policy.max_rollbacks} roll-backs were used up',
    }[policy.policy]
    raise Diverged(f'the run diverged: {message} ({limit})')
