"""Command lines: absl flags over the Config tree, errors that teach, exit codes.

Every command of jaxdl goes through `run`, so the exit codes are the same everywhere: 0 done, 2 the
user's mistake, 3 diverged, 75 preempted after saving, 1 anything else.
"""

import glob
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.errors import Diverged, NotSaved, Preempted, UserError, nearest


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` and turns what it raises into an exit code and, where the user erred, a hint."""
    try:
        return int(main(list(sys.argv if argv is None else argv)) or 0)
    except (UserError, Diverged, Preempted, NotSaved) as error:
        kind = {3: 'diverged', 75: 'preempted'}.get(error.exit_code, 'error')
        print(f'{kind}: {error}', file=sys.stderr, flush=True)
        return error.exit_code
    except flags.Error as error:
        print(f'error: {_flag_message(error)}', file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 75
    except BrokenPipeError:
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _flag_message(error: flags.Error) -> str:
    return ' '.join(str(error).replace('\n', ' ').split())


def parse_flags(argv: Sequence[str], usage: str, *, required: Sequence[str] = ()) -> list[str]:
    """Parses absl flags for a command without a config; returns the positional arguments.

    Prints the usage and exits 0 on --help.
    """
    if any(word in ('--help', '-h', '-help', '--helpfull', '--helpshort') for word in argv[1:]):
        print(usage.strip())
        raise SystemExit(0)
    rest = flags.FLAGS(list(argv))
    for name in required:
        if flags.FLAGS[name].value in (None, ''):
            raise UserError(f'--{name} is missing.\n{usage.strip().splitlines()[0]}')
    return rest[1:]


# ---- configs --------------------------------------------------------------------------------------


def load_module(path: str) -> Any:
    """The module of a config file, run anew.

    Raises:
        UserError: it is no Python file, or running it failed.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(f'configs.{name}', path)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={path}: is no Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where classes that it defines are looked up
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'--config={path}: cannot be loaded, {type(error).__name__}: {error}'
        ) from None
    return module


def load_config(path: str) -> Config:
    """The config of 'configs/name.py' or 'configs/name.py:variant'.

    Raises:
        UserError: no such file or variant, or it does not return a Config.
    """
    filename, _, variant = path.partition(':')
    if not os.path.isfile(filename):
        known = sorted(
            glob.glob(os.path.join(os.path.dirname(filename) or '.', '*.py'))
            or glob.glob('configs/*.py')
        )
        known = [name for name in known if not name.endswith('__init__.py')]
        hint = nearest(filename, known)
        listed = ', '.join(known[:20]) or 'none here; call it from the root of the project'
        raise UserError(f'--config={path}: there is no file {filename}{hint}.\nConfigs: {listed}')
    module = load_module(filename)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
        raise UserError(f'--config={path}: {filename} has no function get_config(variant)')
    try:
        takes = len(inspect.signature(get_config).parameters)
        if variant and not takes:
            raise UserError(f'--config={path}: {filename} has no variants')
        config = get_config(variant) if takes else get_config()
    except (KeyError, ValueError) as error:
        names = [name for name in getattr(module, 'VARIANTS', ()) if name]
        allowed = (
            f'; variants: {", ".join(names)}{nearest(variant, names)}' if names else f' ({error})'
        )
        raise UserError(
            f'--config={path}: {filename} has no variant {variant!r}{allowed}'
        ) from None
    if not isinstance(config, Config):
        raise UserError(
            f'--config={path}: get_config returned {type(config).__name__}, not a jaxdl.core.config.Config'
        )
    return config


def overrides_in(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    """The (path, text) pairs of all --config.FIELD=VALUE words; text is None without a '='."""
    found = []
    words = list(argv[1:])
    for index, word in enumerate(words):
        match = re.match(r'--?(no)?config\.([^=]+)(?:=(.*))?$', word, re.S)
        if match:
            text = match.group(3)
            if text is None and index + 1 < len(words) and not words[index + 1].startswith('-'):
                text = words[index + 1]
            found.append((match.group(2), text))
    return found


def check_path(config: Config, path: str) -> None:
    """Raises UserError unless 'a.b.c' is a field of the config that can be set."""
    node: Any = config
    walked = 'config'
    steps = re.findall(r'([^.\[\]]+)|\[(\d+)\]', path)
    for position, (name, index) in enumerate(steps):
        last = position == len(steps) - 1
        if index:
            if not isinstance(node, tuple | list) or int(index) >= len(node):
                size = len(node) if isinstance(node, tuple | list) else 0
                raise UserError(
                    f'--config.{path}: {walked} has {size} items, there is no [{index}]'
                )
            node, walked = node[int(index)], f'{walked}[{index}]'
            continue
        names = [field.name for field in config_lib.fields(node)]
        if name not in names:
            if not names:
                raise UserError(
                    f'--config.{path}: {walked} is a {type(node).__name__} and has no fields'
                )
            inner = [
                p.removeprefix('config.')
                for p, *_ in config_lib.describe(config)
                if p.endswith('.' + name)
            ]
            hint = f'; did you mean {inner[0]!r}?' if inner else nearest(name, names)
            raise UserError(
                f'--config.{path}: {type(node).__name__} has no field {name!r}{hint}\n'
                f'Fields of {walked}: {", ".join(names)}'
            )
        value = getattr(node, name)
        if last and (
            config_lib.fields(value)
            or (isinstance(value, tuple) and any(config_lib.fields(item) for item in value))
        ):
            raise UserError(
                f'--config.{path}: is a {type(value).__name__} and cannot be set as a whole; '
                'set its fields, or edit the config file'
            )
        node, walked = value, f'{walked}.{name}'


def apply_overrides(config: Config, overrides: Sequence[tuple[str, str | None]]) -> Config:
    """A copy of `config` with fields set from texts, typed, by ml_collections.config_flags.

    Raises:
        UserError: a field does not exist, or a value has the wrong type.
    """
    from ml_collections import config_flags

    if not overrides:
        return config
    for path, _ in overrides:
        check_path(config, path)
    values = flags.FlagValues()
    words = ['config']
    for path, text in overrides:
        words.append(f'--config.{path}' if text is None else f'--config.{path}={text}')
    try:
        holder = config_flags.DEFINE_config_dataclass(
            'config', config, flag_values=values, sys_argv=words
        )
        values(words)
        return holder.value
    except flags.IllegalFlagValueError as error:
        path, text = _blamed(str(error), overrides)
        kind = _type_at(config, path)
        raise UserError(
            f'--config.{path}={text}: must be {kind}; the config has {_value_at(config, path)!r}'
        ) from None
    except (KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(_flag_message(error)) from None  # type: ignore[arg-type]


def _blamed(message: str, overrides: Sequence[tuple[str, str | None]]) -> tuple[str, str | None]:
    for path, text in overrides:
        if f'config.{path}' in message:
            return path, text
    return overrides[0]


def _value_at(config: Config, path: str) -> Any:
    from ml_collections.config_flags import config_path

    return config_path.get_value(path, config)


def _type_at(config: Config, path: str) -> str:
    from ml_collections.config_flags import config_path

    return config_lib.type_name(config_path.get_type(path, config, normalize=False))


def parse_config(argv: Sequence[str], usage: str) -> Config:
    """Parses absl flags and the config with its overrides; checks the whole tree.

    Raises:
        UserError: with the flag, what is allowed and the fix.
    """
    words = list(argv)
    wants_help = any(w in ('--help', '-h', '-help', '--helpfull', '--helpshort') for w in words[1:])
    path = _config_word(words)
    if wants_help:
        print(usage.strip())
        if path:
            print_fields(load_config(path))
        else:
            print(f'\nConfigs: {", ".join(sorted(glob.glob("configs/*.py")))}')
            print('Add --config=configs/NAME.py to list its fields with types and meanings.')
        raise SystemExit(0)
    if not path:
        raise UserError(
            f'--config is missing, for example --config=configs/digits_cnn.py\n'
            f'Configs: {", ".join(sorted(glob.glob("configs/*.py"))) or "none here"}'
        )
    config = load_config(path)
    overrides = overrides_in(words)
    rest, skip = [words[0]], False
    for index, word in enumerate(words[1:], 1):
        if skip:
            skip = False
            continue
        if re.match(r'--?(no)?config\.', word):
            if re.match(r'--?noconfig\.', word):
                overrides = [
                    (p, 'false') if word.endswith(p) and t is None else (p, t) for p, t in overrides
                ]
            follows = words[index + 1] if index + 1 < len(words) else '-'
            skip = '=' not in word and not follows.startswith('-')
        else:
            rest.append(word)
    try:
        left = flags.FLAGS(rest)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, config)) from None
    if len(left) > 1:
        raise UserError(
            f'{left[1]!r} is not a flag; overrides are written --config.FIELD=VALUE (see --help)'
        )
    config = apply_overrides(config, overrides)
    config_lib.check(config)
    return config


def _unknown_flag(name: str, config: Config) -> str:
    paths = [path for path, *_ in config_lib.describe(config)]
    if f'config.{name}' in paths:
        return f'--{name}: there is no such flag; a field of the config is set by --config.{name}=…'
    return f'--{name}: there is no such flag{nearest(name, [*paths, *flags.FLAGS])}'


def _config_word(words: Sequence[str]) -> str:
    path = ''
    for index, word in enumerate(words):
        if re.match(r'--?config=', word):
            path = word.partition('=')[2]
        elif word in ('--config', '-config') and index + 1 < len(words):
            path = words[index + 1]
    return path


def print_fields(config: Config) -> None:
    """Prints the config's fields with type, value and meaning."""
    rows = config_lib.describe(config)
    width = min(44, max(len(path) for path, *_ in rows) + 2)
    print('\nFields (--config.FIELD=VALUE):')
    for path, kind, value, meaning in rows:
        shown = f'{kind} = {value}' if value else kind
        print(f'  --{path:<{width}} {shown}')
        if meaning:
            print(f'      {meaning}')


def default_workdir(argv: Sequence[str]) -> str:
    """runs/NAME[-VARIANT][,FIELD=VALUE…]: the same command finds the same folder again."""
    filename, _, variant = _config_word(argv).partition(':')
    name = os.path.splitext(os.path.basename(filename))[0] + (f'-{variant}' if variant else '')
    parts = [
        f'{path}={text}'
        for path, text in sorted(overrides_in(argv), key=lambda item: item[0])
        if not config_lib.may_change(f'config.{path}')
    ]
    label = ','.join([name, *(re.sub(r'[^\w.=,+-]', '_', part) for part in parts)])
    if len(label) > 120:
        label = f'{label[:100]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}'
    return os.path.join('runs', label)


def summary(metrics: dict[str, Any], workdir: str) -> str:
    """One line: the evaluation's results, and where the run is."""
    shown = [
        f'{name.removeprefix("eval/")} {value:.4f}'
        for name, value in metrics.items()
        if name.startswith('eval/') and isinstance(value, float) and not name.endswith('/examples')
    ]
    return f'done: {", ".join(shown) or "no evaluation sets"}; run folder {workdir}'
