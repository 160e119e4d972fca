"""The commands: python -m jaxdl COMMAND …, which is jaxdl COMMAND once installed.

`python -m jaxdl` lists them, COMMAND --help explains one.
"""

# What `signal` is made of; that one takes half as long to import as Python takes to start.
import _signal  # pyright: ignore[reportMissingImports]
import sys
from collections.abc import Sequence

# Each is a module of jaxdl.commands with a `main(argv)`; its docstring says what it is for.
COMMANDS = (
    'train',
    'evaluate',
    'predict',
    'sample',
    'export',
    'runs',
    'report',
    'track',
    'sweep',
    'plan',
    'prepare',
    'benchmark',
    'interchange',
    'doctor',
    'demo',
)


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that the first word names.

    Raises:
        UserError: there is no such command.
    """
    import importlib

    from jaxdl.core.flags import HELP
    from jaxdl.errors import UserError, nearest, shortened

    words = list(argv[1:])
    if not words or words[0] in (*HELP, 'help'):
        print(overview())
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise UserError(
            f'{shortened(name)!r} is no command{nearest(name, COMMANDS)}; '
            f'commands: {", ".join(COMMANDS)}'
        )
    module = importlib.import_module(f'jaxdl.commands.{name}')
    return module.main([f'jaxdl {name}', *words[1:]])


def overview() -> str:
    """The list of the commands; read from their files, because importing them takes seconds."""
    import ast
    from pathlib import Path

    lines = ['usage: jaxdl COMMAND … (the same as python -m jaxdl COMMAND …)', '']
    for name in COMMANDS:
        source = (Path(__file__).parent / 'commands' / f'{name}.py').read_text(encoding='utf-8')
        purpose = (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]
        lines.append(f'  {name:<{max(map(len, COMMANDS))}}  {purpose}')
    return '\n'.join([*lines, '', 'jaxdl COMMAND --help explains one.'])


def console(*command: str) -> int:
    """The program `jaxdl`, with `command` before the words it was called with."""
    # Before any other import, so that signals wait until the command handles them.
    stop = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, stop)
    from jaxdl.run import runtime

    words = [*command, *sys.argv[1:]]
    return runtime.program(main, ['jaxdl', *words], tuned_heap=words[:1] == ['train'])


if __name__ == '__main__':
    sys.exit(console())
