"""The commands: python -m jaxdl COMMAND …, which is jaxdl COMMAND once installed.

`python -m jaxdl` lists them, COMMAND --help explains one.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxdl.core import flags as cli
from jaxdl.errors import UserError, nearest

# {name: (module with a `main(argv)`, what it is for)}
COMMANDS = {
    'train': ('jaxdl.commands.train', 'train a config, or go on with the run in a folder'),
    'evaluate': ('jaxdl.commands.evaluate', 'evaluate the newest good checkpoint of a run'),
    'sample': ('jaxdl.commands.sample', 'text or translations from a trained model'),
    'report': ('jaxdl.commands.report', 'plots and one HTML page of runs or a sweep'),
    'sweep': ('jaxdl.commands.sweep', 'run many trials of a config; a second call resumes'),
    'plan': ('jaxdl.commands.plan', 'judge a run for GPUs that need not be there'),
    'prepare': ('jaxdl.data.prepare', 'download, check and store a data set'),
    'benchmark': ('jaxdl.commands.benchmark', 'how fast the data of a config is'),
    'interchange': ('jaxdl.interchange.weights', "weights to and from Hugging Face's layout"),
    'demo': ('jaxdl.commands.demo', 'train configs/digits_cnn.py on real digits'),
}


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that the first word names.

    Raises:
        UserError: there is no such command.
    """
    words = list(argv[1:])
    if not words or words[0] in ('--help', '-h', '-help', '--helpfull', '--helpshort', 'help'):
        width = max(map(len, COMMANDS))
        print('usage: jaxdl COMMAND … (the same as python -m jaxdl COMMAND …)\n')
        for name, (_, purpose) in COMMANDS.items():
            print(f'  {name:<{width}}  {purpose}')
        print('\nCOMMAND --help explains one.')
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise UserError(
            f'{name!r} is no command{nearest(name, COMMANDS)}; commands: {", ".join(COMMANDS)}'
        )
    if name == 'train':  # before anything heavy is imported: the restart does it all again
        from jaxdl.run import runtime

        runtime.restart_with_tuned_heap()
    module = importlib.import_module(COMMANDS[name][0])
    return module.main([f'jaxdl {name}', *words[1:]])


def console() -> int:
    """The entry point of the installed command `jaxdl`."""
    return cli.run(main)


if __name__ == '__main__':
    sys.exit(console())
