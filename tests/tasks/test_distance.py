"""Distances between sets of features against scipy, brute force and closed forms."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree

from jaxdl.api import DataSet, Features
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import UserError
from jaxdl.run.features import RunFeatures
from jaxdl.run.loop import train
from jaxdl.run.open_run import open_run
from jaxdl.tasks import distance as lib
from jaxdl.tasks.distance import Distance, measure
from tests import small


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lib, 'BLOCK', 37)


def draws(count, size=6, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(size, size))
    return (scale * rng.normal(size=(count, size)) @ mix + shift).astype(np.float32)


@pytest.mark.parametrize('count', [300, 4])  # fewer rows than dimensions: singular covariances
def test_frechet_distance_is_that_of_scipy(count):
    a, b = draws(count, seed=1), draws(count + 1, seed=2, scale=1.3, shift=0.4)
    sa, sb = np.cov(a.T.astype(float)), np.cov(b.T.astype(float))
    root = sqrtm(sa @ sb + 1e-12 * np.eye(6))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * root.real)
    found = lib.frechet(lib.moments(a), lib.moments(b))
    assert found == pytest.approx(expected, rel=1e-4)
    assert lib.frechet(lib.moments(a), lib.moments(a)) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_round_gaussians():
    """|m|² + d (1 - s)² in closed form."""
    one, other = (np.zeros(5), np.eye(5)), (np.full(5, 2.0), 9 * np.eye(5))
    assert lib.frechet(one, other) == pytest.approx(20 + 5 * 4)


def test_weights_count_rows():
    x, times = draws(20), np.random.default_rng(0).integers(0, 4, 20)
    mean, covariance = lib.moments(x, times.astype(float))
    again = np.repeat(x, times, 0).astype(float)
    np.testing.assert_allclose(mean, again.mean(0), rtol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(again.T), rtol=1e-5)


def brute_kernel(a, b, wa, wb):
    def kernel(x, y):
        return (float(x.astype(float) @ y.astype(float)) / len(x) + 1) ** 3

    def inside(x, w):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        weight = sum(w[i] * w[j] for i, j in pairs)
        return sum(w[i] * w[j] * kernel(x[i], x[j]) for i, j in pairs) / weight

    between = sum(
        wa[i] * wb[j] * kernel(a[i], b[j]) for i in range(len(a)) for j in range(len(b))
    ) / (wa.sum() * wb.sum())
    return inside(a, wa) + inside(b, wb) - 2 * between


def test_kernel_distance_is_the_sum_over_all_pairs():
    a, b = draws(45, seed=1), draws(40, seed=2, scale=1.2)
    rng = np.random.default_rng(0)
    wa, wb = rng.integers(0, 3, (45, 1)), rng.integers(0, 3, (40, 1))
    ones = lib.kernel_distance(a, b)
    assert ones[0] == pytest.approx(brute_kernel(a, b, np.ones(45), np.ones(40)), rel=1e-3)
    found = lib.kernel_distance(a, b, (wa, wb))
    assert found[0] == pytest.approx(brute_kernel(a, b, wa[:, 0], wb[:, 0]), rel=1e-3)


def test_kernel_distance_is_unbiased():
    """Its mean over many small samples of one distribution is 0; single values have both signs."""
    found = [
        lib.kernel_distance(draws(12, seed=2 * s), draws(12, seed=2 * s + 1))[0] for s in range(300)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(300)
    assert min(found) < 0 < max(found)


def test_precision_recall_and_neighbours_by_brute_force():
    real, made = draws(90, size=3, seed=1), draws(80, size=3, seed=2, scale=0.6)

    def inside(points, members, k):
        radius = cKDTree(members).query(members, k + 1)[0][:, k]
        apart = np.linalg.norm(points[:, None].astype(float) - members[None], axis=-1)
        return (apart <= radius).any(1).mean()

    for k in (1, 3):
        found = lib.precision_recall(real, made, k)
        assert found == pytest.approx((inside(made, real, k), inside(real, made, k)), abs=0.013)
    index, apart = lib.nearest(made, real)
    expected, place = cKDTree(real).query(made)
    np.testing.assert_allclose(apart, expected, rtol=1e-3, atol=1e-4)
    assert (index == place).mean() > 0.98
    # A collapsed generator is precise and recalls little; one that is too wide the reverse.
    narrow, wide = draws(80, 3, 3, 0.05), draws(80, 3, 4, 3.0)
    assert lib.precision_recall(real, narrow)[1] < 0.2 < 0.9 < lib.precision_recall(real, narrow)[0]
    assert lib.precision_recall(real, wide)[0] < 0.5 < lib.precision_recall(real, wide)[1]


def test_the_extrapolation_takes_the_bias_of_few_samples_away():
    """Two samples of one distribution have a distance above 0 that falls as 1/n."""
    found, plain = [], []
    for seed in range(4):
        a, b = draws(400, 12, 2 * seed), draws(400, 12, 2 * seed + 1)
        plain.append(lib.frechet(lib.moments(a), lib.moments(b)))
        found.append(lib.extrapolated(a, b, np.random.default_rng(0)))
    assert abs(np.mean(found)) < 0.25 * np.mean(plain)
    # And a true distance stays.
    far = lib.extrapolated(draws(400), draws(400, seed=1, shift=3.0), np.random.default_rng(0))
    assert far == pytest.approx(6 * 9, rel=0.1)


# ---- in a run -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Means(Features):
    """The mean brightness of each quarter: made-up features."""

    on: bool = True

    def ready(self):
        return self.on

    def name(self):
        return 'means'

    def about(self):
        return 'four means'

    def features(self, images):
        quarters = images.reshape(len(images), 2, 2, 2, 2, 1).astype(np.float32)
        return quarters.mean((2, 4, 5)).reshape(len(images), 4)


@dataclasses.dataclass
class Noise(DataSet):
    def _part(self, seed, count):
        rng = np.random.default_rng(seed)
        return ArraySource({'image': rng.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)})

    def train_source(self):
        return self._part(0, 120)

    def eval_sources(self):
        return {'test': self._part(1, 100)}


def test_measure_names_what_it_measured():
    def fresh(count):
        return np.random.default_rng(7).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)

    def copies(count):
        return Noise().train_source().fetch(np.arange(count))['image']

    def beat():
        pass

    both = {}
    for draw in (fresh, copies):
        found = measure(Distance(Means(), bootstrap=8), draw, Noise(), final=True, beat=beat)
        both[draw] = found.scores
        assert all(name.startswith('test/') and name.endswith('_means') for name in found.scores)
        assert found.notes['test/frechet_means'].startswith(
            '100 samples against 100 images of test'
        )
        assert found.pictures['test/nearest_training'].shape == (8, 16 * 4, 1)
    scores = both[fresh]
    assert scores['test/samples_means'] == 100
    assert abs(scores['test/kernel_means']) < 4 * scores['test/kernel_std_means']
    assert 0 < scores['test/frechet_std_means'] < 10 * scores['test/frechet_means']
    assert 0.7 < scores['test/novelty_means'] < 1.4 and both[copies]['test/novelty_means'] < 1e-3
    early = measure(Distance(Means(), samples=50), fresh, Noise(), final=False, beat=beat)
    assert early.scores['test/samples_means'] == 50 and not early.pictures
    assert not measure(Distance(Means(False)), fresh, Noise(), final=True, beat=beat).scores
    with pytest.raises(UserError, match='neighbours=100: must be below the 100 images of test'):
        measure(Distance(Means(), neighbours=100), fresh, Noise(), final=True, beat=beat)


def test_the_features_of_a_run_are_what_its_last_layer_sees(tmp_path):
    run = small.config(steps=4, eval_every=0)
    train(run, str(tmp_path / 'my digits'))
    features = RunFeatures(str(tmp_path / 'my digits'))
    assert features.ready() and features.name() == 'my_digits'
    assert '16 inputs of the last layer of Cnn' in features.about() and 'step 4' in features.about()
    rows = run.data.train_source().fetch(np.arange(30))
    found = features.features(rows['image'])
    opened = open_run(str(tmp_path / 'my digits'), data=False)
    weights = jax.device_get(opened.state.ema)
    last = weights['params']['classifier']
    logits = opened.config.model.apply(
        {'params': weights['params'], **weights['model_state']},
        **run.task.inputs(rows),
        train=False,
    )
    assert found.shape == (30, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found @ last['kernel'] + last['bias'], logits, atol=1e-4)
    with pytest.raises(UserError, match='was trained on images 8×8×1, these are 28×28×1'):
        features.features(np.zeros((2, 28, 28, 1), np.uint8))


def test_a_run_that_is_not_there_is_named_at_the_start(tmp_path):
    with pytest.raises(ValueError, match='holds no run; train a classifier on these images first'):
        RunFeatures(str(tmp_path)).check()
