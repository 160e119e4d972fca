"""docs/extend.md: the file it shows trains, outside the repository, as the page says."""

import json
import os
import re
import subprocess
import sys

from tests.conftest import ROOT


def call(words: list[str], folder) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_page_trains_as_it_stands(tmp_path):
    page = (ROOT / 'docs' / 'extend.md').read_text()
    code = re.search(r'```python\n(.*?)```', page, re.S).group(1)
    (command,) = re.findall(r'```bash\npython (.*?)\n```', page, re.S)
    (tmp_path / 'spirals.py').write_text(code)
    assert len(code.splitlines()) <= 120
    words = [*command.split(), '--config.model.width=24', '--config.optimizer.schedule.floor=0.2']
    done = call(words, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'runs' / 'spirals'
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['step'] == 300 and rows[-1]['eval/valid/accuracy'] > 0.9
    assert {'train/confidence', 'train/loss', 'eval/valid/examples'} <= {
        k for row in rows for k in row
    }
    # The schedule of the file is the one that was used: two teeth, from the peak down to a fifth.
    rates = {
        row['step']: row['train/learning_rate'] for row in rows if 'train/learning_rate' in row
    }
    assert rates[50] > rates[150] < rates[200] > rates[300]
    # The folder alone may not bring code along; the user's own file, named, may be used.
    words = ['-m', 'jaxdl', 'evaluate', '--workdir=runs/spirals', '--json']
    refused = call(words, tmp_path)
    assert refused.returncode == 2 and '--config=FILE' in refused.stderr, refused.stderr
    again = call([*words, '--config=spirals.py'], tmp_path)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found['eval/valid/accuracy'] == rows[-1]['eval/valid/accuracy']
