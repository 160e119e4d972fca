"""The report: what it reads, what it says about it, and that the page works on its own."""

import http.client
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxdl.commands.report import main
from jaxdl.files import write_json
from jaxdl.record.gallery import Gallery, newest
from jaxdl.record.metrics_file import MetricsFile
from jaxdl.record.pictures import encode_png
from jaxdl.record.run_info import RunInfo
from jaxdl.report import plots
from jaxdl.report import write as report
from jaxdl.report.data import Group, Run, differing, direction, find_runs, flatten, group_by_seed

STEPS = 60


def config(**fields):
    learning_rate, seed = fields.get('learning_rate', 0.1), fields.get('seed', 0)
    return {
        'type': 'jaxdl.core.config:Config',
        'model': {'type': 'jaxdl.models.cnn:SmallCnn', 'width': 32, 'strides': [1, 2]},
        'optimizer': {'type': 'jaxdl.core.optim:Sgd', 'learning_rate': learning_rate},
        'checkpoint': {'type': 'jaxdl.core.config:Checkpoint', 'best': '', 'mode': 'max'},
        'steps': STEPS,
        'seed': seed,
    }


def make_run(
    folder: Path, *, status='finished', pictures=False, level=0.0, slim=False, **fields
) -> Path:
    write_json(folder / 'config.json', config(**fields))
    info = RunInfo(
        folder / 'run.json',
        command=['python', 'train.py', '--config=configs/x.py', '--config.note=<a> & b'],
        parameters=12345,
        devices=['cpu'] * 8,
    )
    file = MetricsFile(folder / 'metrics.jsonl', last_step=0)
    for step in range(2, STEPS + 1, 2):
        row = {
            'train/loss': 2 * math.exp(-step / 20),
            'train/learning_rate': 0.1 * (1 - step / STEPS),
            'train/grad_norm': math.nan if step == 10 else 1.0,
            'perf/examples_per_s': 1000.0 + step,
            'perf/epoch': step / 7,
        }
        if step % 20 == 0:
            row |= {
                'eval/test/accuracy': round(min(0.5 + step / 200, 0.7) + level, 6),
                'eval/test/loss': 1 / step,
                'eval/test/examples': 360.0,
            }
        if step == STEPS:
            row |= {
                'perf/time_step_s': 30.0,
                'perf/time_compile_s': 10.0,
                'energy/gpu_joules': 4000.0,
                'energy/cpu_joules': 1000.0,
                'perf/mfu': 0.41,
            }
        if slim:  # plots take their time
            row = {k: v for k, v in row.items() if k in ('train/loss', 'eval/test/accuracy')}
        file.write(step, row)
    file.close()
    if pictures:
        gallery = Gallery(folder / 'samples', last_step=0)
        gallery.picture(0, 'train/images', encode_png(np.zeros((8, 8, 3), np.uint8)))
        gallery.text(20, 'sample', 'an older one')
        gallery.text(STEPS, 'sample', 'a </script> & <b>')
    if status != 'running':
        info.end(status, 'why')
    return folder


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """A folder with three runs, two of which differ in their seed alone, and its report."""
    folder = tmp_path_factory.mktemp('three')
    make_run(folder / 'sgd-seed0', seed=0, pictures=True)
    make_run(folder / 'deep' / 'sgd-seed1', seed=1, level=0.1)
    make_run(folder / 'fast', learning_rate=0.5)
    (folder / 'sgd-seed0' / 'checkpoints' / '40').mkdir(parents=True)
    assert main(['report', str(folder)]) == 0
    return folder


# ---- what is read -------------------------------------------------------------------------------


def test_runs_are_found_and_read(three):
    runs = find_runs([three, three / 'fast'])
    assert [run.name for run in runs] == ['deep/sgd-seed1', 'fast', 'sgd-seed0']
    run = runs[2]
    assert run.step == run.steps == STEPS and run.status == 'finished'
    steps, values = run.series('eval/test/accuracy')
    assert steps.tolist() == [20, 40, 60] and values.tolist() == [0.6, 0.7, 0.7]
    assert run.best('eval/test/accuracy') == (0.7, 40)
    assert run.best('eval/test/loss') == (1 / 60, 60)
    assert run.best('train/grad_norm') == (1.0, 2) and run.last('nothing') is None
    assert run.devices() == '8 × cpu'
    assert 'perf/epoch' in run.keys() and run.evaluations() == [
        'eval/test/accuracy',
        'eval/test/loss',
    ]


def test_a_run_whose_process_is_gone_is_killed(tmp_path):
    run = find_runs([make_run(tmp_path / 'a', status='running')])[0]
    assert run.status == 'running'
    done = subprocess.Popen([sys.executable, '-c', ''])
    done.wait()
    run.info['process'] = done.pid
    assert run.status == 'killed'
    run.info['host'] = 'another machine'
    assert run.status == 'running'


def test_configs_are_compared_field_by_field(three):
    flat = flatten(config())
    assert flat['optimizer'] == 'Sgd' and flat['model.strides'] == '1, 2' and 'type' not in flat
    found = differing(find_runs([three]))
    assert found == {'optimizer.learning_rate': [0.1, 0.5, 0.1], 'seed': [1, 0, 0]}
    other = {'a': [{'type': 'm:A', 'b': 1}], 'f': {'type': 'function', 'name': 'jax:nn.relu'}}
    assert flatten(other) == {'a[0]': 'A', 'a[0].b': 1, 'f': 'nn.relu'}


def test_seeds_are_grouped_and_averaged(three):
    groups = group_by_seed(find_runs([three]))
    assert [len(group.runs) for group in groups] == [2, 1]
    group = groups[0]
    steps, mean, deviation = group.curve('eval/test/accuracy')
    assert steps.tolist() == [20, 40, 60]
    values = [[0.6, 0.7], [0.7, 0.8], [0.7, 0.8]]
    np.testing.assert_allclose(mean, [statistics.mean(v) for v in values])
    np.testing.assert_allclose(deviation, [statistics.stdev(v) for v in values])
    best = group.best('eval/test/accuracy')
    assert best[0] == pytest.approx(0.75) and best[1] == pytest.approx(statistics.stdev([0.7, 0.8]))
    assert groups[1].curve('eval/test/accuracy')[2] is None


def test_runs_of_different_lengths_average_where_half_of_them_are():
    def run(steps):
        rows = [{'step': s, 'a': float(s + len(steps))} for s in steps]
        return Run(Path('.'), 'x', {}, {}, rows)

    group = Group('g', [run([1, 2, 3, 4]), run([1, 2]), run([1])])
    steps, mean, deviation = group.curve('a')
    assert steps.tolist() == [1, 2]
    assert mean.tolist() == [1 + 7 / 3, 5.0] and deviation[1] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ('key', 'expected'),
    [
        ('eval/test/loss', 'min'),
        ('eval/test/accuracy', 'max'),
        ('eval/val/perplexity', 'min'),
        ('eval/x/bleu', 'max'),
        ('train/policy_loss', 'min'),
        ('eval/test/return', 'max'),
        ('eval/loss/accuracy', 'max'),
        ('perf/step_time_ms', 'min'),
    ],
)
def test_the_good_direction_of_a_metric(key, expected):
    assert direction(key) == expected


def test_summary_is_plain(three):
    found = report.summary([three])
    json.dumps(found)
    item = next(item for item in found if item['name'] == 'fast')
    assert item['metrics']['eval/test/accuracy'] == {'final': 0.7, 'best': 0.7, 'best_step': 40}
    assert item['config']['optimizer.learning_rate'] == 0.5 and item['parameters'] == 12345
    assert item['status'] == 'finished' and item['command'].startswith('python train.py')


# ---- the page -----------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Checks that tags close in order, and collects ids, links and texts."""

    VOID = frozenset(('meta', 'img', 'br', 'hr', 'link', 'input'))

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.outside, self.texts, self.references = [], [], [], [], []

    def handle_starttag(self, tag, attrs, closed=False):
        for name, value in attrs:
            if name == 'id':
                self.ids.append(value)
            if name in ('src', 'href', 'xlink:href', 'action', 'data', 'poster', 'srcset'):
                (self.references if value.startswith('#') else self.outside).append(value)
            self.references += [f'#{r}' for r in re.findall(r'url\(#([^)]*)\)', value or '')]
        if tag not in self.VOID and not closed:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs, closed=True)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def check_page(path: Path) -> str:
    text = path.read_text(encoding='utf-8')
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith('data:image/png;base64,') for link in checker.outside)
    assert {r[1:] for r in checker.references} <= set(checker.ids)
    assert 'http:' not in text and 'https:' not in text and '@import' not in text
    return ' '.join(' '.join(checker.texts).split())


def test_the_page_stands_alone(three):
    text = check_page(three / 'report' / 'index.html')
    page = (three / 'report' / 'index.html').read_text()
    assert 'a </script> & <b>' in text  # shown as it is, not as markup
    assert '&lt;/script&gt;' in page
    assert "python train.py --config=configs/x.py '--config.note=<a> & b'" in text
    assert '75.00 ± 7.07 %' in text and 'an older one' not in text
    assert 'optimizer.learning_rate' in text and '12,345' in text and '8 × cpu' in text
    for heading in ('Runs', 'Differences', 'Curves', 'Optimizer', 'Speed', 'Time', 'Samples'):
        assert f'<h2>{heading}</h2>' in page
    assert page.count('class="chip"') == 2
    for svg in re.findall(r'<svg viewBox.*?</svg>', page, re.S):
        assert '#24292e' not in svg and 'DejaVu' not in svg


def test_every_plot_is_a_png(three):
    from PIL import Image

    names = {path.stem for path in (three / 'report').glob('*.png')}
    assert names == {
        'overview', 'wall_time', 'train_loss', 'eval_test_loss', 'eval_test_accuracy',
        'train_grad_norm', 'train_learning_rate', 'perf_examples_per_s',
    }  # fmt: skip
    for path in (three / 'report').glob('*.png'):
        with Image.open(path) as image:
            image.load()
            assert image.width > 900 and len(image.convert('L').getcolors()) > 10


def test_one_run_has_training_and_evaluation_in_one_plot(tmp_path, capsys):
    make_run(tmp_path / 'only', pictures=True)
    target = tmp_path / 'elsewhere' / 'page'
    assert main(['report', str(tmp_path / 'only'), f'--output={target}']) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f'report of 1 run: {target / "index.html"}'
    assert re.search(r'only +finished +60/60 +70\.00 % \(70\.00 % at 40\)', out[-2])
    text = check_page(target / 'index.html')
    data = re.findall(
        r'<script type="application/json">(.*?)</script>', (target / 'index.html').read_text()
    )
    loss = json.loads(data[0])
    assert [line['label'] for line in loss['lines']] == ['train', 'test']
    assert loss['lines'][1]['x'] == [20, 40, 60] and loss['lines'][0]['y'][0] == pytest.approx(
        1.8097
    )
    assert 0 <= loss['box'][0] < loss['box'][2] <= 1 and 0 <= loss['box'][1] < loss['box'][3] <= 1
    norm = next(d for d in map(json.loads, data) if None in d['lines'][0]['y'])
    assert norm['lines'][0]['x'][norm['lines'][0]['y'].index(None)] == 10  # the nan
    assert '5 kJ' in text and 'best 70.00 % at step 40' in text
    assert (target / 'loss.png').exists() and not (tmp_path / 'only' / 'report').exists()


def test_a_second_report_removes_what_is_no_longer_part_of_it(tmp_path):
    make_run(tmp_path / 'a', learning_rate=0.1, slim=True)
    output = tmp_path / 'report'
    main(['report', str(tmp_path)])
    assert (output / 'loss.png').exists()
    (output / 'mine.png').write_bytes(b'')
    make_run(tmp_path / 'b', learning_rate=0.2, slim=True)
    main(['report', str(tmp_path)])
    assert not (output / 'loss.png').exists() and (output / 'train_loss.png').exists()
    assert (output / 'mine.png').exists()


def test_many_curves_can_be_told_apart(tmp_path):
    for index in range(44):
        make_run(tmp_path / f'{index:02d}', learning_rate=0.1 + index, level=index / 100, slim=True)
    runs = find_runs([tmp_path])
    page = report.write(runs, [tmp_path], tmp_path / 'report').read_text()
    chips = re.findall(r'class="chip".*?</button>', page)
    looks = [re.search(r'<path.*?/>', chip)[0] for chip in chips]
    assert len(set(looks)) == len(looks) == 42
    assert 'The 42 best of 44 are drawn' in page
    drawn = [re.search(r'<span>(\d\d)</span>', chip)[1] for chip in chips]
    assert set(drawn) == {f'{index:02d}' for index in range(2, 44)}


def test_long_curves_are_thinned_to_their_means_and_ranges():
    from jaxdl.report.plots import Line, _thinned

    x = np.arange(10_000)
    y = np.where(x == 5000, 100.0, x / 10_000)
    line = _thinned(Line('a', x, y))
    assert len(line.x) <= 300 and line.high.max() == 100 and line.low.min() == 0
    counts = np.diff(
        [*np.searchsorted(x, np.linspace(0, 10_000, len(line.x) + 1).astype(int)[:-1]), 10_000]
    )
    assert (line.y * counts).sum() == pytest.approx(y.sum())


def test_a_spike_does_not_flatten_a_plot():
    from jaxdl.report.plots import Line, Panel, limits

    y = 1.0 - np.arange(100) / 200
    y[50] = 7
    low, high = limits(Panel('loss', 'loss', [Line('a', np.arange(100), y)]))
    assert low < 0.51 and 1.0 < high < 2


CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)

PROBE = """<script>
const out = {};
addEventListener('error', e => { out.error = e.message; });
const plot = document.querySelector('figure.plot'), svg = plot.querySelector('svg');
const box = svg.getBoundingClientRect();
out.size = [box.width > 300, box.height > 150];
svg.dispatchEvent(new MouseEvent('mousemove', {clientX: box.left + box.width * .5, clientY: box.top + 80}));
out.tip = [...document.querySelectorAll('#tip div')].map(d => d.textContent);
document.querySelectorAll('.chip')[0].click();
out.hidden = document.querySelectorAll('.off').length;
const head = [...document.querySelectorAll('table')[1].querySelectorAll('th')];
const first = () => document.querySelectorAll('table')[1].tBodies[0].rows[0].cells[0].textContent;
head[4].click(); out.worst = first(); head[4].click(); out.best = first();
out.colours = [getComputedStyle(svg.querySelector('[id$="-line-1"] path')).stroke];
document.getElementById('theme').click();
out.colours.push(getComputedStyle(svg.querySelector('[id$="-line-1"] path')).stroke);
document.documentElement.dataset.probe = JSON.stringify(out);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
def test_the_page_works_in_a_browser(three, tmp_path):
    page = tmp_path / 'page.html'
    page.write_text((three / 'report' / 'index.html').read_text().replace('</body>', PROBE))
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile',
         '--window-size=1200,900', '--dump-dom', page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    out = json.loads(found[1].replace('&quot;', '"').replace('&amp;', '&'))
    assert 'error' not in out and out['size'] == [True, True]
    assert out['tip'][0].startswith('step ') and len(out['tip']) == 3
    # One of the two curves is gone from each of the plots, with its band.
    assert out['hidden'] >= 6
    assert out['worst'] != out['best'] == 'deep/sgd-seed1'
    assert out['colours'][0] != out['colours'][1]


def test_a_served_report_follows_its_runs(tmp_path, monkeypatch):
    from jaxdl.report import serve
    from jaxdl.report.data import find_runs

    monkeypatch.setattr(serve, 'EVERY', 0)
    make_run(tmp_path / 'runs' / 'first', slim=True)
    output = tmp_path / 'page'

    def make():
        report.write(find_runs([tmp_path / 'runs']), [tmp_path / 'runs'], output)

    serving = serve.server(output, make, 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    host, port = serving.server_address[:2]
    assert host == '127.0.0.1'

    def get(name='127.0.0.1'):
        call = http.client.HTTPConnection(host, port, timeout=30)
        call.request('GET', '/', headers={'Host': f'{name}:{port}'})
        answer = call.getresponse()
        return answer.status, answer.getheader('Refresh'), answer.read().decode()

    status, refresh, page = get()
    assert status == 200 and refresh == '0' and 'first' in page and 'second' not in page
    make_run(tmp_path / 'runs' / 'second', slim=True, seed=1)
    assert 'second' in get()[2]
    (tmp_path / 'runs' / 'second' / 'config.json').write_text('{')
    shutil.rmtree(tmp_path / 'runs' / 'first')
    assert 'second' in get()[2]  # nothing can be read now: the page stays
    assert get('example.org')[0] == 403
    serving.shutdown()
    serving.server_close()


# ---- mistakes -----------------------------------------------------------------------------------


def call(*words, cwd=None):
    done = subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'report', *map(str, words)],
        capture_output=True, text=True, timeout=120, cwd=cwd,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ('words', 'hint'),
    [
        ([], 'give DIR …, not none; for example'),
        (['{runs}/onee'], "no such folder; did you mean 'one'?"),
        (['{runs}/one/metrics.jsonl'], 'is a file; give the folder'),
        (['{runs}/empty'], 'looked for folders that hold metrics.jsonl and config.json'),
        (['{runs}/half'], 'half/run has only one of the two'),
        (['{runs}/started'], 'holds no complete line yet'),
        (['{runs}/broken'], 'metrics.jsonl: line 3, 4: not a JSON object'),
        (['{runs}/badconfig'], 'config.json: not the JSON that jaxdl writes'),
        (['{runs}/one', '--ouput=x'], "--ouput: there is no such flag; did you mean 'output'?"),
        (['{runs}/one', '--output='], '--output is empty'),
        (['{runs}/one', '--output={runs}/one/metrics.jsonl'], 'cannot be written there'),
        (['{runs}/one', '{runs}/empty'], 'empty: no run at or below it'),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(tmp_path, words, hint):
    make_run(tmp_path / 'one', slim=True)
    (tmp_path / 'empty').mkdir()
    make_run(tmp_path / 'half' / 'run')
    (tmp_path / 'half' / 'run' / 'config.json').unlink()
    for name in ('started', 'broken', 'badconfig'):
        make_run(tmp_path / name)
    (tmp_path / 'started' / 'metrics.jsonl').write_text('{"step": 1, "tr')
    path = tmp_path / 'broken' / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:2], 'x', '[]', *lines[4:]]))
    (tmp_path / 'badconfig' / 'config.json').write_text('{')
    from jaxdl.errors import run

    code, error = _captured(run, ['report', *(w.format(runs=tmp_path) for w in words)])
    assert code == 2, error
    assert error.startswith('error: ') and len(error.splitlines()) <= 2
    assert hint in error


def _captured(run, words):
    import contextlib
    import io

    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        return run(main, words), stream.getvalue()


def test_the_command_itself(tmp_path):
    make_run(tmp_path / 'one', slim=True)
    code, out, error = call(tmp_path / 'one')
    assert code == 0 and out.splitlines()[-1].startswith('report of 1 run: '), error
    code, out, error = call(tmp_path / 'nothing')
    assert code == 2 and 'Traceback' not in error and error.startswith('error: ')
    code, out, error = call('--help')
    assert code == 0 and 'report DIR …' in out


def test_damage_that_does_not_matter_is_tolerated(tmp_path):
    folder = make_run(tmp_path / 'one', pictures=True, slim=True)
    (folder / 'run.json').write_text('{"status": ')
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 61, "train/l')
    for path in newest(folder / 'samples').values():
        path[1].write_bytes(path[1].read_bytes()[:-5] + b'\xff')
    assert main(['report', str(folder)]) == 0
    assert 'unknown' in check_page(folder / 'report' / 'index.html')


def test_a_run_with_one_line_has_a_page(tmp_path):
    folder = make_run(tmp_path / 'one')
    path = folder / 'metrics.jsonl'
    path.write_text(path.read_text().splitlines()[0] + '\n')
    assert main(['report', str(folder)]) == 0
    check_page(folder / 'report' / 'index.html')


def test_no_name_of_a_run_breaks_the_page(tmp_path):
    make_run(tmp_path / 'a<' / 'script>&"', learning_rate=0.1, slim=True)
    make_run(tmp_path / 'b', learning_rate=0.2, slim=True)
    assert main(['report', str(tmp_path)]) == 0
    text = check_page(tmp_path / 'report' / 'index.html')
    assert 'a</script>&"' in text
    data = re.findall(
        r'<script type="application/json">(.*?)</script>',
        (tmp_path / 'report' / 'index.html').read_text(),
    )
    assert [line['label'] for line in json.loads(data[0])['lines']] == ['a</script>&"', 'b']


def test_a_report_that_is_broken_off_leaves_the_old_one(tmp_path, monkeypatch):
    def contents():
        return {p.name: p.read_bytes() for p in (tmp_path / 'one' / 'report').iterdir()}

    def half(figure, file, **options):
        file.write(b'half a picture')
        raise KeyboardInterrupt

    make_run(tmp_path / 'one', slim=True)
    assert main(['report', str(tmp_path / 'one')]) == 0
    before = contents()
    monkeypatch.setattr(plots, 'to_svg', lambda *words: '<svg></svg>')
    monkeypatch.setattr(plots.Figure, 'savefig', half)
    with pytest.raises(KeyboardInterrupt):
        main(['report', str(tmp_path / 'one')])
    assert contents() == before
