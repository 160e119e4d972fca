"""Evaluates a run: python -m jaxdl evaluate --workdir=DIR [--step=N] [--batch_size=N] [--json]
                                [--config=FILE[:variant]]

Takes the newest good checkpoint (or --step), goes over every evaluation set, each example exactly
once, with the averaged weights where the run has them, and changes nothing in the folder.
A run's folder may come from anybody, so of what its config.json names only modules of jaxdl, flax,
optax and jax are imported. Where it uses classes of yours, --config names the config file that
defines or imports them; the file is run.
"""

import json

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.run import runtime


def main(argv):
    runtime.prepare_process()
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_integer(
        'step', None, 'the checkpoint; the newest good one by default', lower_bound=0
    )
    flags.DEFINE_string('config', '', 'the config file whose classes the run may use')
    flags.DEFINE_integer('batch_size', 0, "examples at a time; the run's by default", lower_bound=0)
    flags.DEFINE_boolean('json', False, 'print one JSON object')
    cli.parse_flags(argv, __doc__ or '', required=('workdir',))
    values = flags.FLAGS

    from jaxdl.core.evaluation import Evaluator
    from jaxdl.errors import UserError
    from jaxdl.run.open_run import open_run

    run = open_run(values.workdir, step=values.step, config_file=values.config)
    if not run.eval_sources:
        raise UserError(f'--workdir={values.workdir}: the config has no evaluation set')
    if values.batch_size:
        run.config.eval_batch_size = values.batch_size
    evaluator = Evaluator(run.program, run.eval_sources)
    (found,) = evaluator.run(run.state, run.program.place_hyper(), lambda: None)
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    generated = evaluator.generate(run.state, lambda: None, final=True)
    notes = {}
    if generated is not None:
        numbers |= {f'eval/{name}': value for name, value in generated.scores.items()}
        notes = {f'eval/{name}': text for name, text in generated.notes.items()}
    if values.json:
        print(json.dumps({'step': run.step, **numbers, **notes}))
    else:
        print(f'step {run.step} of {run.workdir.path}')
        for name, value in numbers.items():
            count = name.endswith('/examples')
            print(f'  {name:<32} {f"{value:,.0f}" if count else f"{value:.6g}"}')
        for name, text in notes.items():
            print(f'  {name:<32} {text}')
