"""The table of parameters."""

import numpy as np
import pytest

from jaxdl.record.parameters import count_parameters, parameter_table


def test_parameter_table_adds_up():
    import jax
    import jax.numpy as jnp

    values = np.random.default_rng(0).normal(2.0, 3.0, (300, 7)).astype(np.float32)
    tree = {
        'layers': {
            f'block{i}': {'kernel': jnp.asarray(values), 'bias': jnp.ones(7)} for i in range(11)
        },
        'head': jnp.zeros((7, 2), jnp.bfloat16),
    }
    lines = parameter_table(tree).splitlines()
    names = [line.split()[0] for line in lines]
    assert names.index('layers/block2/kernel') < names.index('layers/block10/kernel')
    row = lines[names.index('layers/block3/kernel')].split()
    assert row[1:6] == ['300', '×', '7', 'float32', '2,100']
    assert float(row[6]) == pytest.approx(values.mean(), rel=1e-2)
    assert float(row[7]) == pytest.approx(values.std(), rel=1e-2)
    total = 11 * (2100 + 7) + 14
    assert lines[-1].split() == ['total', '23', 'arrays', f'{total:,}']
    short = parameter_table(tree, max_rows=12)
    assert 'layers/block4' in short and 'kernel' not in short and '2 arrays' in short
    # Hundreds of arrays directly under one node cannot be grouped; the rest is summed up.
    flat = {f'w{i}': jnp.ones(3) for i in range(100)}
    lines = parameter_table(flat).splitlines()
    assert len(lines) < 40 and '(66 more)' in lines[-3] and '198' in lines[-3]
    shapes = jax.eval_shape(lambda: tree)
    assert f'{total:,}' in parameter_table(shapes) and 'mean' not in parameter_table(shapes)
    assert count_parameters(shapes) == total
