"""The range test: the losses are those of the training step at rising rates; what it suggests."""

import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.run import find_rate
from tests import small
from tests.commands.test_train import said_by


def test_the_losses_are_those_of_the_training_step():
    config = small.config(batch_size=16)
    factors, found = find_rate.losses(config, steps=6)
    right, *_ = small.losses(find_rate.rising(config, 6), 6, devices=8)
    np.testing.assert_allclose(found, right[: len(found)], rtol=1e-6)
    assert np.allclose(np.diff(np.log(factors)), np.log(1e5) / 6)
    rate = find_rate.rising(config, 6).optimizer.rate(np.arange(len(found)), 6)
    np.testing.assert_allclose(0.05 * factors, rate, rtol=1e-5)


def test_smoothing():
    values = np.random.default_rng(0).random(9)
    weights = 0.9 ** np.arange(9)[::-1]
    right = [np.average(values[: n + 1], weights=weights[8 - n :]) for n in range(9)]
    np.testing.assert_allclose(find_rate.smoothed(values), right)


def test_what_is_suggested(monkeypatch, capsys):
    factors = np.geomspace(1e-3, 1e2, 100)
    loss = 2 + np.log10(factors / 3) ** 2  # smallest at three times the config's rate
    monkeypatch.setattr(find_rate, 'losses', lambda config: (factors, loss))
    monkeypatch.setattr(find_rate, 'SMOOTH', 0.0)
    words = find_rate.report(small.config()).splitlines()[-1]
    assert words.startswith('a tenth') and words.endswith('--config.optimizer.learning_rate=0.015')
    code, said, _ = said_by('--config=digits_cnn', '--find_lr')
    assert code == 0 and '--config.optimizer.learning_rate=0.0009' in said
    monkeypatch.setattr(find_rate, 'losses', lambda config: (factors, factors))
    with pytest.raises(UserError, match='never fell'):
        find_rate.report(small.config())
