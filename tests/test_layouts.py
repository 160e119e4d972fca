"""Every layout of every kind of model trains the same: one table."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxdl.core.config import Mesh
from tests import layouts
from tests.layouts import ANY_MODEL, LAYOUTS

TABLE = [
    *((family, layout) for family in ('cnn', 'lstm') for layout in ANY_MODEL),
    # Under pmap each device draws other noise.
    ('vae', 'data_fsdp'),
    ('unet', 'data_fsdp'),
    *(('dit', layout) for layout in ('fsdp_tensor', 'accumulation')),
    *((family, layout) for family in ('robust', 'gan') for layout in ('data_fsdp', 'pmap')),
    *(('decoder', layout) for layout in LAYOUTS),
    *(('encoder_decoder', n) for n in LAYOUTS if n not in ('zero', 'offload', 'all')),
]
# The whole table takes minutes; these come first.
FIRST = [('decoder', n) for n in ('ring', 'heads')]


@functools.cache
def start(family: str):
    return layouts.initial(layouts.config(family))


@functools.cache
def on_one_device(family: str, accumulate: int) -> np.ndarray:
    run = layouts.config(family, mesh=Mesh(data=1), accumulate=accumulate)
    return layouts.losses(run, start(family))


@pytest.mark.parametrize(
    ('family', 'layout'),
    [c if c in FIRST else pytest.param(*c, marks=pytest.mark.slow) for c in TABLE],
)
def test_a_layout_does_not_change_the_training(family, layout):
    run = dataclasses.replace(layouts.config(family), **LAYOUTS[layout])
    # Batch statistics are those of a part where the batch is cut; all else is exact under it.
    parts = run.accumulate if family in ('cnn', 'robust') else 1
    expected = on_one_device(family, parts)
    found = layouts.losses(run, start(family))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert abs(found[-1] - found[0]) > 1e-2, 'nothing was learned: nothing was compared'
