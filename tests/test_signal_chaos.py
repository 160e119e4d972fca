"""Stop signals at random moments of real commands; `python -m tests.signal_chaos` sends more."""

import pytest

from tests import signal_chaos


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('name', signal_chaos.COMMANDS)
def test_signals_at_random_moments(name, capsys):
    code = signal_chaos.main(['signal_chaos', '--signals=4', '--seed=5', f'--only={name}'])
    assert code == 0, capsys.readouterr().out
