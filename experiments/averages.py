"""Evaluates a run with its averaged and with its raw weights, of the same checkpoint.

    python -m experiments.averages --workdir=DIR [--step=N]

Train with evaluation sets that nothing was tuned on, such as
`--config.data.train="train[:85%]" --config.data.evals="('valid=train[85%:]',)"`.
"""

import argparse

from jaxdl.core.evaluation import Evaluator
from jaxdl.run.open_run import open_run
from jaxdl.run.runtime import prepare_process


def main() -> None:
    """Parses the command line, evaluates and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--step', type=int)
    values = parser.parse_args()
    prepare_process()
    run = open_run(values.workdir, step=values.step)
    if run.state.ema is None:
        parser.error('this run averages nothing: its config has ema=0')
    evaluator = Evaluator(run.program, run.eval_sources)
    raw = {'params': run.state.params, 'model_state': run.state.model_state}
    for name, state in (('averaged', run.state), ('raw', run.state.replace(ema=raw))):
        found = evaluator.run(state, run.program.place_hyper(), lambda: None)
        made = evaluator.generate(state, lambda: None, final=True)
        scores = {} if made is None else {f'eval/{key}': v for key, v in made.scores.items()}
        for key, value in {**found, **scores}.items():
            if isinstance(value, float):
                print(f'step {run.step}  {name:<9} {key:<30} {value:.6g}')


if __name__ == '__main__':
    main()
