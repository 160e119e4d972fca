"""The report of what a classifier got wrong."""

import json

import numpy as np
import pytest

from jaxdl.commands.report import main as report
from jaxdl.predict import mistakes
from jaxdl.predict.predictor import load
from tests.predict.test_predict import trained  # noqa: F401  (a fixture)


def test_the_worst_examples_and_the_calibration(trained):  # noqa: F811
    run = trained / 'run'
    (name, found), *others = mistakes.judge(str(run)).items()
    assert name == 'test' and not others and found.step == 6
    from jaxdl.data.images.tfds import Tfds

    source = Tfds('digits').eval_sources()['test']
    rows = source.fetch(np.arange(len(source)))
    values = load(run).predict(rows['image'])
    right = values['label'] == rows['label']
    last = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert found.examples == len(right) and found.wrong == (~right).sum()
    assert found.wrong == round((1 - last['eval/test/accuracy']) * found.examples)

    of_label = values['probabilities'][np.arange(len(right)), rows['label']]
    lowest = np.sort(of_label[~right])[:12]
    np.testing.assert_allclose([one.of_label for one in found.worst], lowest, rtol=1e-5)
    worst = int(np.where(right, 1, of_label).argmin())
    first = found.worst[0]
    np.testing.assert_array_equal(first.shown, rows['image'][worst])
    assert first.label == str(rows['label'][worst])
    assert first.predicted == str(values['label'][worst]) != first.label

    assert sum(count for *_, count in found.bins) == len(right)
    sure, share, _ = np.array(found.bins).T
    assert (np.diff(sure) > 0).all() and ((share >= 0) & (share <= 1)).all()


def test_calibration_by_hand():
    sure = np.array([0.95, 0.91, 0.55, 0.51, 1.0])
    right = np.array([True, False, True, True, True])
    bins = mistakes.calibration(sure, right)
    np.testing.assert_allclose(bins, [(0.53, 1, 2), (2.86 / 3, 2 / 3, 3)])


def test_they_are_a_section_of_the_page(trained, tmp_path, capsys):  # noqa: F811
    assert report(['report', str(trained / 'run'), f'--output={tmp_path}', '--mistakes']) == 0
    page = (tmp_path / 'index.html').read_text()
    assert 'Mistakes, test' in page and 'Expected calibration error' in page
    found = mistakes.judge(str(trained / 'run'))['test']
    assert page.count(', predicted ') == 2 * len(found.worst)  # the caption and the picture's text
    assert (tmp_path / 'calibration_run_test.png').stat().st_size > 1000
    (trained / 'run' / 'run.json').rename(tmp_path / 'kept')
    for step in (trained / 'run' / 'checkpoints').iterdir():
        step.rename(tmp_path / step.name)
    try:
        assert report(['report', str(trained / 'run'), f'--output={tmp_path}', '--mistakes']) == 0
        assert 'its mistakes are not shown: ' in capsys.readouterr().err
    finally:
        (tmp_path / 'kept').rename(trained / 'run' / 'run.json')


@pytest.mark.slow
def test_texts_are_shown_as_texts(tmp_path):
    import dataclasses

    from jaxdl.run import loop as trainer
    from tests.test_language_configs import shrunk

    lines = [f'{word} {i}' for i in range(40) for word in ('good film', 'bad film')]
    labels = [f'{line}\t{(i % 2) ^ (i == 7)}' for i, line in enumerate(lines)]
    (tmp_path / 'labels.tsv').write_text('\n'.join(labels))
    config = dataclasses.replace(shrunk('imdb_lstm', tmp_path), steps=2)
    trainer.train(config, str(tmp_path / 'run'))
    found = mistakes.judge(str(tmp_path / 'run'))['test']
    assert found.worst and all(one.shown in lines for one in found.worst)
