"""What a classifier got wrong, and whether its probabilities can be believed."""

import dataclasses

import numpy as np

from jaxdl.predict.predictor import Predictor
from jaxdl.run.open_run import open_run

BINS = 10


@dataclasses.dataclass
class Mistake:
    """One example.

    Attributes:
        shown: a text, or a picture uint8 [height, width, channels].
        label: the right class.
        predicted: the class that the model says.
        sure: the probability of that.
        of_label: the probability of the right class.
    """

    shown: str | np.ndarray
    label: str
    predicted: str
    sure: float
    of_label: float


@dataclasses.dataclass
class Judged:
    """A classifier's predictions for one evaluation set.

    Attributes:
        step: the step of the checkpoint.
        examples: size of the set.
        wrong: how many predictions are wrong.
        worst: the examples whose right class has the lowest probability, the worst first.
        bins: (mean probability, share that is right, examples) of each interval of the probability
            of the predicted class that holds examples.
        error: expected calibration error (arXiv:1706.04599): the mean gap of the two.
    """

    step: int
    examples: int
    wrong: int
    worst: list[Mistake]
    bins: list[tuple[float, float, int]]
    error: float


def judge(workdir: str, *, most: int = 12) -> dict[str, Judged]:
    """{evaluation set: its judgement} of the newest good checkpoint; {} if it is no classifier.

    Raises:
        UserError: the run or its evaluation sets cannot be opened.
    """
    run = open_run(workdir)
    if not run.config.task.defines('predictions'):
        return {}
    model, found = Predictor(run), {}
    for name, source in run.eval_sources.items():
        if 'label' not in model.row:
            return {}
        values = model.over(source)
        if 'probabilities' not in values:
            return {}
        ids = np.arange(len(source))
        parts = np.array_split(ids, max(1, len(ids) // 1024))
        labels = np.concatenate([source.fetch(part)['label'] for part in parts])
        predicted, shares = values['label'], values['probabilities']
        of_label, sure = shares[ids, labels], values['probability']
        right = predicted == labels
        order = [int(i) for i in np.argsort(of_label, kind='stable') if not right[i]][:most]

        def named(label: int) -> str:
            names = model.class_names
            return names[label] if label < len(names) else str(label)

        worst = []
        for i in order:
            row = {key: value[0] for key, value in source.fetch(np.array([i])).items()}
            worst.append(
                Mistake(
                    run.config.data.shown(row),
                    named(int(labels[i])),
                    named(int(predicted[i])),
                    float(sure[i]),
                    float(of_label[i]),
                )
            )
        bins = calibration(sure, right)
        gaps = [abs(mean - share) * count for mean, share, count in bins]
        found[name] = Judged(
            run.step, len(ids), int((~right).sum()), worst, bins, sum(gaps) / len(ids)
        )
    return found


def calibration(sure: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, examples) of each of BINS equal intervals in use."""
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    found = []
    for index in range(BINS):
        here = place == index
        if here.any():
            found.append((float(sure[here].mean()), float(right[here].mean()), int(here.sum())))
    return found
