"""How far generated images are from real ones, in the features of a trained classifier.

Fréchet distance (arXiv:1706.08500) and its value for infinitely many samples (arXiv:1911.07023),
the unbiased kernel distance (arXiv:1801.01401), precision and recall (arXiv:1904.06991), and how
near samples are to training images. The functions take features, float [count, size]; `measure`
puts them together for a task that can draw images. A distance depends on the features, so its name
is the classifier's, and on the number of samples, which is always reported beside it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdl.api import DataSet, Features, Generated, Source
from jaxdl.errors import UserError, at_least
from jaxdl.tasks.pictures import tiled

BLOCK = 512  # rows of a matrix of pairs that are held at a time


# ---- distances between two sets of features -------------------------------------------------------


def moments(features: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Mean [size] and covariance [size, size] in float64; `weights` count each row so many times."""
    x = np.asarray(features, np.float64)
    weights = np.ones(len(x)) if weights is None else weights
    mean = weights @ x / weights.sum()
    apart = x - mean
    return mean, (apart * weights[:, None]).T @ apart / (weights.sum() - 1)


def frechet(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> float:
    """The Fréchet distance of the Gaussians with these moments (mean, covariance).

    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½); the last trace is that of the root of the symmetric
    Σa^½ Σb Σa^½, whose eigenvalues are real, so singular covariances need no exception.
    """
    values, vectors = np.linalg.eigh(a[1])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ b[1] @ root)
    both = np.sqrt(np.maximum(crossed, 0)).sum()
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * both)


def extrapolated(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, points: int = 15) -> float:
    """The Fréchet distance for infinitely many samples (arXiv:1911.07023).

    The distance of n random samples is a straight line in 1/n; its value at 0 is read off a fit to
    `points` sizes from a fifth of the samples on. Both sets are cut to n, not only the generated
    one as in the paper, because the real images are a sample too.
    """
    most = min(len(a), len(b))
    sizes = np.unique(np.linspace(max(most // 5, 2), most, points).astype(int))
    found = [
        frechet(*(moments(x[rng.choice(len(x), n, replace=False)]) for x in (a, b))) for n in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def kernel_sums(
    a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray, *, same: bool
) -> np.ndarray:
    """Σᵢⱼ wᵢ vⱼ (aᵢ·bⱼ/size + 1)³ for each column of the weights, without i = j if `same`."""
    total = np.zeros(weights_a.shape[1])
    size = a.shape[1]
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        kernel = a[rows] @ b.T / size + 1
        kernel = kernel * kernel * kernel  # numpy's power is ten times slower
        if same:
            np.fill_diagonal(kernel[:, rows], 0)
        total += (weights_a[rows] * (kernel @ weights_b)).sum(0)
    return total


def kernel_distance(
    a: np.ndarray, b: np.ndarray, weights: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """The unbiased squared MMD under a cubic kernel, [columns of the weights].

    Each column counts the rows so often, as a bootstrap does; pairs of a row with itself are left
    out, so that drawing a row twice adds no distance.
    """
    one = np.ones((len(a), 1)), np.ones((len(b), 1))
    wa, wb = (w.astype(np.float32) for w in weights or one)
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)

    def inside(x, w):
        pairs = w.sum(0, dtype=np.float64) ** 2 - (w.astype(np.float64) ** 2).sum(0)
        return kernel_sums(x, x, w, w, same=True) / pairs

    between = kernel_sums(a, b, wa, wb, same=False) / (wa.sum(0) * wb.sum(0, dtype=np.float64))
    return inside(a, wa) + inside(b, wb) - 2 * between


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """The share of samples inside the manifold of the real images, and the reverse.

    The manifold of a set is the union of balls around its members, each as large as the distance to
    its k-th nearest neighbour in the set (arXiv:1904.06991).
    """
    return _inside(generated, real, k), _inside(real, generated, k)


def _inside(points: np.ndarray, members: np.ndarray, k: int) -> float:
    # The member itself, at distance 0, is the first of the k + 1 nearest.
    radii = np.concatenate(
        [np.partition(rows, k, axis=1)[:, k] for _, rows in _squares(members, members)]
    )
    return float(np.concatenate([(d <= radii).any(1) for _, d in _squares(points, members)]).mean())


def nearest(points: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the nearest member to each point, and its distance."""
    found = [(d.argmin(1), np.sqrt(d.min(1))) for _, d in _squares(points, members)]
    index, distance = zip(*found, strict=True)
    return np.concatenate(index), np.concatenate(distance)


def _squares(points: np.ndarray, members: np.ndarray):
    """Yields (first row, squared distances [rows, members]) block by block."""
    centre = members.mean(0)  # less is lost to rounding around the middle
    points = np.asarray(points - centre, np.float32)
    members = np.asarray(members - centre, np.float32)
    length = (members**2).sum(1)
    same = points.shape == members.shape and np.array_equal(points, members)
    for start in range(0, len(points), BLOCK):
        rows = points[start : start + BLOCK]
        found = (rows**2).sum(1)[:, None] + length - 2 * rows @ members.T
        found = np.maximum(found, 0)
        if same:
            np.fill_diagonal(found[:, start : start + BLOCK], 0)
        yield start, found


# ---- for a task that draws images -----------------------------------------------------------------


@dataclasses.dataclass
class Distance:
    """What is measured of generated images in every evaluation.

    Attributes:
        features: the trained classifier; a features.path of '' measures nothing.
        samples: images that are drawn; 0: as many as the evaluation set has.
        neighbours: k of precision and recall.
        bootstrap: draws with replacement, of samples and real images, for the standard deviations.
        copies: at the end, also look for the nearest training image of each sample.
    """

    features: Features
    samples: int = 0
    neighbours: int = 3
    bootstrap: int = 20
    copies: bool = True
    # The features of the sets that were seen, {name: [images, size]}.
    seen: dict[str, np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def check(self):
        at_least(self, samples=0, neighbours=1, bootstrap=2)
        if 0 < self.samples <= self.neighbours:
            raise ValueError(f'samples={self.samples}: must be 0 or above neighbours')


def measure(
    distance: Distance | None,
    draw: Callable[[int], np.ndarray],
    data: DataSet,
    *,
    final: bool,
    beat: Callable[[], None],
) -> Generated:
    """Scores of drawn images against each evaluation set, whole; nothing without a classifier.

    The scores of a set: frechet, frechet_inf and kernel with their standard deviations, precision,
    recall, and the number of samples, named after the classifier. At the end also `novelty`: the
    mean distance of samples to their nearest training image over that of the evaluation's images;
    far below 1 the model repeats what it was shown. A picture shows the samples nearest to a
    training image beside it.

    Args:
        distance: what is measured; None: nothing.
        draw: n → uint8 images [n, height, width, channels]; the same images for the same weights.
        data: its evaluation sets are the real images, its training set what might be copied.
    """
    found = Generated()
    if distance is None:
        return found
    if not distance.features.ready():
        found.notes['distance'] = 'not measured: distance.features names no classifier'
        return found
    name = distance.features.name()
    for key, source in data.eval_sources().items():
        real = _features(distance, f'eval/{key}', source, beat)
        images = draw(distance.samples or len(source))
        beat()
        features = distance.features.features(images)
        if min(len(real), len(features)) <= distance.neighbours:
            raise UserError(
                f'--config.task.distance.neighbours={distance.neighbours}: must be below the '
                f'{min(len(real), len(features))} images of {key}'
            )
        scores = compare(real, features, distance, beat)
        found.notes[f'{key}/frechet_{name}'] = (
            f'{len(features):,} samples against {len(real):,} images of {key}; '
            f'{distance.features.about()}'
        )
        if final and distance.copies:
            train = data.train_source()
            shown = _features(distance, 'train', train, beat)
            index, apart = nearest(features, shown)
            beat()
            scores['novelty'] = float(apart.mean() / max(nearest(real, shown)[1].mean(), 1e-12))
            first = np.argsort(apart)[:16]
            originals = train.fetch(np.asarray(index[first], np.int64))['image']
            pairs = np.concatenate([images[first], originals])
            found.pictures[f'{key}/nearest_training'] = tiled(pairs, len(first))
            beat()
        found.scores |= {f'{key}/{metric}_{name}': value for metric, value in scores.items()}
    return found


def compare(
    real: np.ndarray, features: np.ndarray, distance: Distance, beat: Callable[[], None]
) -> dict[str, float]:
    """All scores of two sets of features but `novelty`; random parts are the same in every call."""
    rng = np.random.default_rng(0)
    draws = tuple(
        rng.multinomial(len(x), np.full(len(x), 1 / len(x)), distance.bootstrap).T.astype(float)
        for x in (real, features)
    )
    values = [
        frechet(moments(real, a), moments(features, b))
        for a, b in zip(draws[0].T, draws[1].T, strict=True)
    ]
    beat()
    ones = [np.concatenate([np.ones((len(w), 1)), w], 1) for w in draws]
    kernel = kernel_distance(real, features, (ones[0], ones[1]))
    beat()
    precision, recall = precision_recall(real, features, distance.neighbours)
    beat()
    return {
        'frechet': frechet(moments(real), moments(features)),
        'frechet_std': float(np.std(values, ddof=1)),
        'frechet_inf': extrapolated(real, features, rng),
        'kernel': float(kernel[0]),
        'kernel_std': float(np.std(kernel[1:], ddof=1)),
        'precision': precision,
        'recall': recall,
        'samples': float(len(features)),
    }


def _features(
    distance: Distance, name: str, source: Source, beat: Callable[[], None]
) -> np.ndarray:
    """The features of all images of a set; computed once."""
    if name not in distance.seen:
        found, step = [], 2000
        for start in range(0, len(source), step):
            rows = source.fetch(np.arange(start, min(start + step, len(source))))
            found.append(distance.features.features(rows['image']))
            beat()
        distance.seen[name] = np.concatenate(found)
    return distance.seen[name]
