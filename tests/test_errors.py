"""The checks of fields that configs, models, tasks and data sets share."""

from types import SimpleNamespace

import jax
import pytest

from jaxdl.errors import above_zero, at_least, below_one, check_pattern, one_of


@pytest.mark.parametrize(
    'value, check, message',
    [
        (0, lambda x: at_least(x, size=1), 'size=0: must be at least 1'),
        (float('nan'), lambda x: at_least(x, size=1), 'size=nan: must be at least 1'),
        (float('inf'), lambda x: at_least(x, size=1), 'size=inf: must be at least 1'),
        (0.0, lambda x: above_zero(x, 'size'), r'size=0\.0: must be above 0'),
        (float('nan'), lambda x: above_zero(x, 'size'), 'size=nan: must be above 0'),
        (1, lambda x: below_one(x, 'size'), r'size=1: must be in \[0, 1\)'),
        (-0.1, lambda x: below_one(x, 'size'), r'size=-0\.1: must be in \[0, 1\)'),
        (float('nan'), lambda x: below_one(x, 'size'), r'size=nan: must be in \[0, 1\)'),
        (
            'larg',
            lambda x: one_of(x, size=('small', 'large')),
            "size='larg': must be one of 'small', 'large'; did you mean 'large'",
        ),
        (4, lambda x: one_of(x, size=(2, 3)), 'size=4: must be one of 2, 3'),
        ('(', lambda x: check_pattern(x.size), r"'\(' is not a regular expression"),
        (3, lambda x: check_pattern(x.size), '3 is not a regular expression'),
    ],
)
def test_checks_name_the_field_the_value_and_what_is_allowed(value, check, message):
    with pytest.raises(ValueError, match=message):
        check(SimpleNamespace(size=value))


def test_the_bounds_themselves_pass():
    holder = SimpleNamespace(size=1, rate=0, name='a')
    at_least(holder, size=1, rate=0)
    above_zero(holder, 'size')
    below_one(holder, 'rate')
    one_of(holder, name=('a', 'b'), size={1: 'one'})


def test_a_traced_rate_passes():
    def inside(rate):
        below_one(SimpleNamespace(rate=rate), 'rate')
        return rate

    assert jax.jit(inside)(3.0) == 3.0
