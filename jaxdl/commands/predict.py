"""Predictions of a trained model for files of yours; no training data is needed.

INPUT is a picture, a folder of pictures, a text file with one text a line (pairs: .tsv or .jsonl), a
folder of text files, or a .npz file with the arrays of a row, such as 'image'. The averaged weights
are used if the run has them, and everything is prepared as in training. Without --out a table goes
to standard output.
"""

import sys
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(
        __doc__ or '',
        words='INPUT FILE|DIR …',
        example='--workdir=runs/digits_cnn pictures/ --out=predictions.csv',
    )
    line.string('workdir', 'DIR', 'the folder of the run', required=True)
    line.string('out', 'FILE', 'the file to write: .csv, .jsonl or .npz')
    line.integer('step', 'the checkpoint; the newest good one unless given')
    line.integer('batch_size', "inputs at a time; the run's unless given", least=1)
    line.string(
        'config', 'FILE[:variant]', 'the config file whose classes the run may use; it is run'
    )
    given = line.parse(argv)

    from jaxdl.predict import output

    kind = output.format_of(given.out) if given.out else 'csv'
    runtime.open_devices()
    from jaxdl.predict.predictor import load

    model = load(given.workdir, step=given.step, config=given.config or '')
    if given.batch_size:
        model.config.eval_batch_size = given.batch_size
    found = model.predict(given.words[0] if len(given.words) == 1 else given.words)
    if not given.out:
        sys.stdout.write(output.encoded(found, model.class_names, kind).decode())
        return
    output.write(given.out, found, model.class_names)
    count = len(next(iter(found.values())))
    print(f'{count:,} prediction{"s"[: count != 1]} of step {model.step} are in {given.out}')
