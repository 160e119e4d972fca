"""Measures one claim in this process: python -m experiments.claims.worker CLAIM SETTINGS SECONDS."""

import importlib
import json
import sys
from pathlib import Path

from experiments.claims.base import Results, Settings
from jaxdl.run import runtime


def main(words: list[str]) -> None:
    claim, text, seconds = words
    fields = json.loads(text)
    settings = Settings(**{**fields, 'power_limits': tuple(fields['power_limits'])})
    module = importlib.import_module(f'experiments.claims.{claim}')
    if hasattr(module, 'prepare'):  # before jax is imported
        module.prepare(settings)
    else:
        runtime.prepare_process()
    results = Results(Path(settings.folder), claim, quick=settings.quick)
    results.run(module.parts(settings), seconds=float(seconds))


if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
    main(sys.argv[1:])
