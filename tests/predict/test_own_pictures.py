"""A folder of one's own pictures to a model, predictions and an exported file, by commands."""

import json
import shutil

import jax.export
import numpy as np

from jaxdl.__main__ import main
from tests.commands.test_own_data import SHORT, TINY, folder  # noqa: F401  (a fixture)
from tests.commands.test_train import said_by


def test_four_commands(folder, tmp_path, capsys):  # noqa: F811
    run, out = tmp_path / 'run', tmp_path / 'out'
    own = ['--config=images', f'--config.data.folder={folder}', f'--workdir={run}']
    code, _, error = said_by(*own, *SHORT, *TINY)  # jaxdl train
    assert code == 0, error
    assert not main(['', 'report', str(run), '--mistakes'])
    assert 'Mistakes, valid' in (run / 'report' / 'index.html').read_text()

    pictures = str(shutil.move(folder / 'green', tmp_path / 'green'))
    shutil.rmtree(folder)  # from here on the training data is gone
    assert not main(['', 'predict', f'--workdir={run}', pictures, f'--out={out}.jsonl'])
    rows = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert len(rows) == 16 and {row['label'] for row in rows} <= {'red', 'green', 'blue'}
    assert rows[0]['probabilities'].keys() == {'blue', 'green', 'red'}
    assert not main(['', 'export', f'--workdir={run}', f'--out={out}.stablehlo'])
    assert 'classes in order: blue, green, red' in capsys.readouterr().out

    from jaxdl.data.images.given import picture_inputs

    image = np.zeros((12, 12, 3), np.uint8)
    images = picture_inputs(pictures, {'image': image}).source.fetch(np.arange(16))['image']
    call = jax.export.deserialize(bytearray((tmp_path / 'out.stablehlo').read_bytes())).call
    found = np.asarray(call({'image': images})['probabilities'])
    expected = [[row['probabilities'][name] for name in ('blue', 'green', 'red')] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
