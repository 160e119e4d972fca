"""Sweeps: many runs of one question over every GPU of a machine, or over a cluster."""

from jaxdl.sweeps.algebra import (
    chain,
    choices,
    grid,
    integers,
    log_uniform,
    product,
    sample,
    uniform,
    zipped,
)
from jaxdl.sweeps.spec import Halving, Hyperband, Median, Search, Sweep

__all__ = [
    'Halving',
    'Hyperband',
    'Median',
    'Search',
    'Sweep',
    'chain',
    'choices',
    'grid',
    'integers',
    'log_uniform',
    'product',
    'sample',
    'uniform',
    'zipped',
]
