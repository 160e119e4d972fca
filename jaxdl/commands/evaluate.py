"""Evaluates the newest good checkpoint of a run on every evaluation set.

Each example counts exactly once. The averaged weights are used if the run has them. Nothing in the
run's folder is changed. A folder may come from anybody, so only modules of jaxdl, flax, optax and
jax are imported for it; if its config has other classes, give their config file as --config.
"""

import json
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(__doc__ or '', example='--workdir=runs/digits_cnn --json')
    line.string('workdir', 'DIR', 'the folder of the run', required=True)
    line.integer('step', 'the checkpoint; the newest good one unless given')
    line.integer('batch_size', "examples at a time; the run's unless given", least=1)
    line.string(
        'config', 'FILE[:variant]', 'the config file whose classes the run may use; it is run'
    )
    line.boolean('json', 'print one JSON object')
    given = line.parse(argv)
    runtime.open_devices()

    from jaxdl.core.evaluation import Evaluator
    from jaxdl.run.open_run import open_run

    run = open_run(given.workdir, step=given.step, config_file=given.config or '')
    if not run.eval_sources:
        raise UserError(f'--workdir={given.workdir}: the config has no evaluation set')
    if given.batch_size:
        run.config.eval_batch_size = given.batch_size
    evaluator = Evaluator(run.program, run.eval_sources)
    (found,) = evaluator.run(run.state, run.program.place_hyper(), lambda: None)
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    generated = evaluator.generate(run.state, lambda: None, final=True)
    notes = {}
    if generated is not None:
        numbers |= {f'eval/{name}': value for name, value in generated.scores.items()}
        notes = {f'eval/{name}': text for name, text in generated.notes.items()}
    if given.json:
        print(json.dumps({'step': run.step, **numbers, **notes}))
    else:
        print(f'step {run.step} of {run.workdir.path}')
        for name, value in numbers.items():
            count = name.endswith('/examples')
            print(f'  {name:<32} {f"{value:,.0f}" if count else f"{value:.6g}"}')
        for name, text in notes.items():
            print(f'  {name:<32} {text}')
