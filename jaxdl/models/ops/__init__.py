"""The operations every model is built on, and which formulation of each is used where.

A formulation gives the values and gradients of the plain one, in a form that is faster on its
platform. It is chosen while the program is traced: for the platform named by `set_platform`, else
for `jax.default_backend()`. `set_plain(True)`, or JAXDL_PLAIN=1 in the environment, selects the
plain formulation everywhere, for comparison.
"""

import collections
import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from jaxdl.models.ops import cpu, cpu_attention, cpu_rnn, cuda, loss, onednn, plain
from jaxdl.models.ops.plain import counted as counted

P = ParamSpec('P')
R = TypeVar('R')

_plain = os.environ.get('JAXDL_PLAIN', '') not in ('', '0')
_platform: str | None = None


def set_plain(plain: bool) -> None:
    """Selects the plain formulation of every operation for programs traced from now on."""
    global _plain
    _plain = plain


def set_platform(platform: str | None) -> None:
    """Names the platform ('cpu', 'cuda') that programs traced from now on will run on; None asks jax."""
    global _platform
    if platform not in (None, 'cpu', 'cuda', 'tpu'):
        raise ValueError(f"platform={platform!r}: must be 'cpu', 'cuda', 'tpu' or None")
    _platform = platform


def platform() -> str:
    """Returns 'plain', or the platform whose formulations are used: 'cpu', 'cuda', 'tpu'."""
    if _plain:
        return 'plain'
    name = _platform or jax.default_backend()
    return 'cuda' if name in ('gpu', 'rocm') else name


_used: dict[str, set[str]] = collections.defaultdict(set)


def used() -> dict[str, str]:
    """Which formulations the programs traced in this process have taken: {'conv': 'cpu, onednn', …}."""
    return {name: ', '.join(sorted(forms)) for name, forms in sorted(_used.items())}


def _by_platform(
    plain: Callable[P, R], **others: Callable[..., R] | tuple[Callable[..., R], ...]
) -> Callable[P, R]:
    """The operation `plain`; `others` are its formulations for a platform, or for all that have none.

    Of several the first is taken that does not return NotImplemented.
    """

    @functools.wraps(plain)
    def operation(*args: P.args, **kwargs: P.kwargs) -> R:
        where = platform()
        forms = plain if where == 'plain' else others.get(where, others.get('default', plain))
        for form in forms if isinstance(forms, tuple) else (forms,):
            result = form(*args, **kwargs)
            if result is not NotImplemented:
                _used[plain.__name__].add(form.__module__.rpartition('.')[2])
                return result
        raise NotImplementedError(plain.__name__)

    return operation


matmul = _by_platform(plain.matmul, cpu=cpu.matmul)
add_bias = _by_platform(plain.add_bias, cpu=cpu.add_bias)
conv = _by_platform(plain.conv, cpu=(onednn.conv, cpu.conv))
max_pool = _by_platform(plain.max_pool, cpu=cpu.max_pool)
avg_pool = _by_platform(plain.avg_pool, cpu=cpu.avg_pool)
batch_norm_relu = plain.batch_norm_relu
norm = _by_platform(plain.norm, cuda=cuda.norm)
dropout = _by_platform(plain.dropout, cuda=cuda.dropout)
gelu = _by_platform(plain.gelu, cuda=cuda.gelu)
attention = _by_platform(plain.attention, cpu=cpu_attention.attention, cuda=cuda.attention)
lstm = _by_platform(plain.lstm, cpu=cpu_rnn.lstm)
gru = _by_platform(plain.gru, cpu=cpu_rnn.gru)
argmax = _by_platform(plain.argmax, cpu=cpu.argmax)
cross_entropy = loss.cross_entropy
chunked_cross_entropy = _by_platform(
    loss.whole_cross_entropy,
    cpu=loss.chunked_cross_entropy_cpu,
    default=loss.chunked_cross_entropy,
)
recompute = _by_platform(plain.recompute, default=jax.checkpoint)
