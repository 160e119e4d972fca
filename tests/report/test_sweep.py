"""The report of a sweep: what it computes, and that its page works."""

import json
import math
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxdl.commands.report import main
from jaxdl.files import write_json
from jaxdl.record.metrics_file import MetricsFile
from jaxdl.report import sweep as report_sweep
from jaxdl.report.data import find_runs
from jaxdl.sweeps import Sweep, grid
from jaxdl.sweeps.results import Results
from jaxdl.sweeps.store import Store
from tests.report.test_report import CHROMIUM, check_page

METRIC = 'eval/test/accuracy'
RATES, WIDTHS, ACTS = (0.001, 0.01, 0.1), (8, 16, 32), ('relu', 'gelu')


def accuracy(varied, seed):
    """An additive function: the rate explains most, the width some, the activation nothing."""
    rate = (0.0, 0.3, 0.15)[RATES.index(varied['optimizer.learning_rate'])]
    width = 0.03 * WIDTHS.index(varied['model.width'])
    return round(0.5 + rate + width + 0.01 * seed, 6)


def make_sweep(folder, points, *, seeds=2, value=accuracy, unfinished=()):
    """A finished sweep's folder, its results written by the sweep's own code."""
    sweep = Sweep('configs/x.py', METRIC, points=points, seeds=seeds)
    store, trials = Store(folder), sweep.trials()
    store.open()
    for trial in trials:
        trial.group, trial.steps = 'g', 40
    store.save_plan('sweep.py', sweep, trials)
    for trial in trials:
        place = folder / 'trials' / trial.id
        write_json(
            place / 'config.json',
            {'type': 'jaxdl.core.config:Config', 'steps': 40, **trial.overrides},
        )
        file = MetricsFile(place / 'metrics.jsonl', last_step=0)
        final = value(trial.varied, trial.seed or 0)
        for step in (10, 20, 30, 40):
            file.write(step, {METRIC: final * (1 - math.exp(-step / 10)) if step < 40 else final})
        file.close()
        status = 'failed' if trial.id in unfinished else 'finished'
        write_json(place / 'run.json', {'status': status, 'step': 40, 'seconds': 1.5, 'reason': ''})
        reason = 'exit code 1\nthe <disk> is on fire' if trial.id in unfinished else ''
        store.note(trial.id, status=status, reason=reason, attempts=1)
    found = Results(store, sweep).write(trials)
    store.close()
    return found


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweep')
    points = grid({'optimizer.learning_rate': RATES, 'model.width': WIDTHS, 'model.act': ACTS})
    results = make_sweep(folder, points, unfinished=('0002',))
    assert main(['report', str(folder)]) == 0
    return folder, results


def test_importance_is_the_share_of_the_variance(sweep):
    """Of an additive function over a full grid it is known: each factor's own variance."""
    folder, results = sweep
    data = report_sweep.arrange(folder, results, find_runs([folder]))
    found = dict(report_sweep.importance(data))
    rate, width = np.var([0.0, 0.3, 0.15]), np.var([0.0, 0.03, 0.06])
    assert found['learning_rate'] == pytest.approx(rate / (rate + width), abs=0.08)
    assert found['width'] == pytest.approx(width / (rate + width), abs=0.08)
    assert found['act'] < 0.03 and next(iter(found)) == 'learning_rate'


def test_axes(sweep):
    folder, results = sweep
    data = report_sweep.arrange(folder, results, find_runs([folder]))
    rate, width, act = data.axes
    assert rate.log and rate.numeric and width.numeric and not width.log and not act.numeric
    assert [rate.place(v) for v in RATES] == pytest.approx([0, 0.5, 1])
    assert [width.place(v) for v in WIDTHS] == pytest.approx([0, 1 / 3, 1])
    assert [act.place(v) for v in ACTS] == [0, 1]


def test_the_page_and_its_pictures(sweep):
    folder, results = sweep
    check_page(folder / 'report' / 'index.html')
    page = (folder / 'report' / 'index.html').read_text()
    best = results['best']
    assert best['varied'] == {
        'optimizer.learning_rate': 0.01, 'model.width': 32, 'model.act': 'relu',
    }  # fmt: skip
    assert best['command'] in page.replace('&#x27;', "'")
    for title in ('Sweep', 'Trials', 'Learning curves', 'Parallel coordinates', 'Importance'):
        assert f'<h2>{title}</h2>' in page
    assert page.count('data-trial=') == 36 and 'the &lt;disk&gt; is on fire' in page
    names = {p.name for p in (folder / 'report').glob('sweep_*.png')}
    fields = ('optimizer.learning_rate', 'model.width', 'model.act')
    assert names == {
        'sweep_parallel.png', 'sweep_importance.png',
        *(f'sweep_curves_{f}.png' for f in fields), *(f'sweep_against_{f}.png' for f in fields),
    }  # fmt: skip
    # Every trial has a curve in each of the three plots of curves.
    plots = re.findall(r'<figure class="sweep[^"]*">(<svg.*?</svg>)</figure>', page, re.S)
    assert len(plots) == 8
    for svg in plots[:3]:
        ids = [e.get('id', '') for e in ElementTree.fromstring(svg).iter()]
        assert sum('-trial-' in name for name in ids) == 36
    # A point of the parallel coordinates names both of its seeds.
    assert 'trial-0000-0001"' in plots[3]


def test_the_table_of_points_has_mean_and_spread(sweep):
    folder, _ = sweep
    page = (folder / 'report' / 'index.html').read_text()
    table = page[page.index('Points, the best first') :]
    first = re.findall(r'<td[^>]*>(.*?)</td>', table[: table.index('</tr><tr')])
    # Seeds 0 and 1 differ by 0.01: their mean and sample deviation.
    assert first[:4] == ['1', '0.01', '32', 'relu']
    assert first[4] == '86.50 %' and float(first[5][:-2]) == pytest.approx(
        1 / math.sqrt(2), abs=5e-3
    )


@pytest.mark.parametrize(
    'points',
    [
        [{}],  # nothing varies
        [{'a': 1}, {'b': 'x'}, {'b': None}, {'c': (1, 2)}],  # fields that not all points have
        [{'steps': 10 * i} for i in range(1, 30)],  # more values than a legend names
    ],
)
def test_odd_sweeps_have_a_page(tmp_path, points):
    make_sweep(tmp_path, points, seeds=(), value=lambda varied, seed: 0.5)
    assert main(['report', str(tmp_path)]) == 0
    check_page(tmp_path / 'report' / 'index.html')


def test_a_sweep_that_has_just_begun(tmp_path):
    every = ('0000', '0001', '0002', '0003')
    make_sweep(tmp_path, [{'a': 1}, {'a': 2}], value=lambda v, seed: 0.5, unfinished=every)
    assert main(['report', str(tmp_path)]) == 0
    assert 'No trial has finished yet' in check_page(tmp_path / 'report' / 'index.html')


PROBE = """<script>
const out = {};
addEventListener('error', e => { out.error = e.message; });
const table = document.querySelector('tr[data-trial]').closest('table');
const heads = [...table.querySelectorAll('th')];
const column = heads.findIndex(h => h.textContent === 'eval/test/accuracy');
const ids = () => [...table.tBodies[0].rows].map(r => r.dataset.trial);
out.before = ids();
heads[column].click(); out.up = ids();
heads[column].click(); out.down = ids();
out.sorted = heads[column].getAttribute('aria-sort');
table.tBodies[0].rows[0].dispatchEvent(new MouseEvent('mouseenter'));
out.dim = document.querySelectorAll('.sweep .dim').length;
out.lit = document.querySelectorAll('.sweep [id*="-trial-"]:not(.dim)').length;
table.tBodies[0].rows[0].dispatchEvent(new MouseEvent('mouseleave'));
out.after = document.querySelectorAll('.sweep .dim').length;
const line = document.querySelector('.sweep [id$="-trial-0005"]');
line.dispatchEvent(new MouseEvent('mouseenter', {clientX: 300, clientY: 300}));
out.tip = document.getElementById('tip').textContent;
out.row = [...document.querySelectorAll('tr.lit')].map(r => r.dataset.trial);
const box = document.querySelector('.sweep svg').getBoundingClientRect();
out.size = [box.width > 300, box.height > 150];
document.documentElement.dataset.probe = JSON.stringify(out);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
def test_the_page_works_in_a_browser(sweep, tmp_path):
    folder, results = sweep
    page = tmp_path / 'page.html'
    page.write_text((folder / 'report' / 'index.html').read_text().replace('</body>', PROBE))
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile',
         '--window-size=1200,900', '--dump-dom', page.as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    out = json.loads(found[1].replace('&quot;', '"').replace('&amp;', '&'))
    assert 'error' not in out and out['size'] == [True, True]
    values = {t['id']: t['value'] for t in results['trials']}
    assert out['before'] == sorted(values)
    assert [values[i] for i in out['up']] == sorted(values.values())
    assert [values[i] for i in out['down']] == sorted(values.values(), reverse=True)
    assert out['sorted'] == 'descending'
    # One trial: a curve in three plots, its point in the parallel coordinates and in three more.
    assert out['lit'] == 7 and out['dim'] == 3 * 35 + 4 * 17 and out['after'] == 0
    assert out['tip'].startswith('trial 0005 · learning_rate 0.001') and out['row'] == ['0005']
