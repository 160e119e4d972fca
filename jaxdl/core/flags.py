"""Command lines: the flags of a command, and a Config with the fields that were overridden."""

import glob
import importlib.util
import inspect
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from absl import flags

from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.errors import UserError, closest, nearest, shortened
from jaxdl.files import expanded

HELP = ('--help', '-h', '-help', '--helpfull', '--helpshort')
_PACKAGE = Path(__file__).resolve().parent.parent
# The configs that come with jaxdl: inside the package where it was installed from a wheel.
SHIPPED = next(filter(Path.is_dir, (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')), None)


class CommandLine:
    """The flags of one command: their definition, their --help and their parsing.

    Args:
        about: the docstring of the command's module: its purpose in one line, then paragraphs.
        example: a command line without the command's name.
        words: the positional arguments: 'NAME' is exactly one, 'DIR …' one or more, '[DIR …]' any
            number, '' none.
    """

    def __init__(self, about: str, *, example: str, words: str = ''):
        self.purpose, _, self.details = about.strip().partition('\n')
        self.example, self.words = example, words
        self._flags = flags.FlagValues()
        self._shown: dict[str, str] = {}  # how --help writes each flag
        self._meaning: dict[str, str] = {}
        self._required: list[str] = []
        self._may_be_empty: set[str] = set()
        self._choices: dict[str, tuple[str, ...]] = {}
        self._takes_config = False  # whether --config is read, with fields to set

    # ---- the flags ----

    def string(
        self,
        name: str,
        shown: str,
        meaning: str,
        *,
        default: str = '',
        required: bool = False,
        empty: bool = False,
    ) -> None:
        """A text; --help shows `shown` as its value, and `empty` allows ''."""
        flags.DEFINE_string(name, default, meaning, flag_values=self._flags)
        self._describe(name, f'={shown}', meaning)
        if required:
            self._required.append(name)
        if empty:
            self._may_be_empty.add(name)

    def choice(self, name: str, choices: Sequence[str], meaning: str) -> None:
        """One of `choices`; the first is the default."""
        flags.DEFINE_enum(name, choices[0], list(choices), meaning, flag_values=self._flags)
        self._describe(name, f'={"|".join(choices)}', meaning)

    def integer(
        self, name: str, meaning: str, *, default: int | None = None, least: int | None = 0
    ) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=self._flags)
        self._describe(name, '=N', meaning)

    def number(
        self, name: str, meaning: str, *, default: float | None = None, least: float | None = 0.0
    ) -> None:
        """A finite float."""
        flags.DEFINE_float(name, default, meaning, lower_bound=least, flag_values=self._flags)
        self._describe(name, '=X', meaning)

    def boolean(self, name: str, meaning: str, *, default: bool = False) -> None:
        flags.DEFINE_boolean(name, default, meaning, flag_values=self._flags)
        self._describe(name, '', meaning)

    def several(
        self, name: str, choices: Iterable[str], meaning: str, default: Sequence[str] | None = None
    ) -> None:
        """A comma-separated list of some of `choices`; the default is all, or `default`."""
        self._choices[name] = tuple(choices)
        chosen = self._choices[name] if default is None else default
        self.string(name, 'NAME,…', meaning, default=','.join(chosen))

    def config(self, *, required: bool = True) -> None:
        """The flag --config, and --config.FIELD for each of its fields."""
        self._takes_config = True
        self.string('config', 'NAME', 'a config: its name or file, :variant', required=required)

    def _describe(self, name: str, value: str, meaning: str) -> None:
        default = self._flags[name].default
        self._shown[name] = f'--{"[no]" if default is True else ""}{name}{value}'
        if default is not None and default is not False and default != '':
            meaning += f' (default: {"on" if default is True else default})'
        self._meaning[name] = meaning

    # ---- help ----

    def help(self, command: str) -> str:
        """The text of --help; `command` is how the command was called."""
        usage = [self.words] if self.words else []
        rows = []
        for name, shown in self._shown.items():
            needed = name in self._required
            usage.append(shown if needed else f'[{shown}]')
            rows.append((shown, self._meaning[name] + ' (required)' * needed))
            if name == 'config' and self._takes_config:
                usage.append('[--config.FIELD=VALUE …]')
                rows.append(
                    ('--config.FIELD=VALUE', 'sets a field; --config=NAME --help lists them')
                )
        usage.append('[--help]')
        column = '\n' + ' ' * 30
        lines = [
            f'  {shown:<28}'
            + column * (len(shown) > 27)
            + textwrap.fill(meaning, 70).replace('\n', column)
            for shown, meaning in rows
        ]
        wrap = textwrap.TextWrapper(
            100, subsequent_indent=' ' * 8, break_on_hyphens=False, break_long_words=False
        )
        joined = wrap.fill(' '.join([f'usage: {command}', *usage]))
        parts = [self.purpose, joined, self.details.strip()]
        if lines:
            parts.append('\n'.join(['flags:', *lines]))
        parts.append(f'example:\n  {command} {self.example}'.rstrip())
        return '\n\n'.join(part for part in parts if part)

    # ---- reading ----

    def parse(
        self,
        argv: Sequence[str],
        *,
        before_config: Callable[[SimpleNamespace], None] = lambda given: None,
    ) -> SimpleNamespace:
        """The flags by name, `words`, `present` (the flags given) and `config` (checked, or '').

        --help prints the text and ends the command with 0. `before_config` is called with the flags
        before the config's file is run, which imports jax; `config` is then still its name.

        Raises:
            UserError: it names the flag, what is allowed and the fix.
        """
        command, words = argv[0], list(argv[1:])
        if os.path.isabs(command):  # started with python -m: the path of a module
            command = f'python -m {os.path.relpath(command)[:-3].replace(os.sep, ".")}'
        rest, overrides = _split(words) if self._takes_config else (words, [])
        if any(word in HELP for word in words):
            print(self.help(command))
            name = config_word(rest) if self._takes_config else ''
            if name:
                print_fields(load_config(name))
            elif self._takes_config:
                print('\nconfigs: ' + ', '.join(config_names()))
            raise SystemExit(0)
        given = self._read(command, rest, overrides)
        before_config(given)
        if self._takes_config and given.config:
            config = apply_overrides(load_config(given.config), overrides)
            given.config = config_lib.completed(config)
            config_lib.check(given.config)
        return given

    def _read(self, command: str, words: list[str], overrides: Sequence) -> SimpleNamespace:
        for word in words:  # absl accepts these flags in every program; here they are refused
            if re.match(r'--?(flagfile|undefok)\b', word):
                raise UserError(self._unknown(word.lstrip('-').partition('=')[0]))
        try:
            left = self._flags([command, *words])[1:]
        except flags.UnrecognizedFlagError as error:
            raise UserError(self._unknown(error.flagname, words)) from None
        except flags.IllegalFlagValueError as error:
            raise UserError(self._refused(str(error))) from None
        except (flags.Error, ValueError) as error:  # ValueError: --noNAME=VALUE
            raise UserError(' '.join(str(error).split())) from None
        if left and not self.words:
            example = '--config.FIELD=VALUE' if self._takes_config else '--FLAG=VALUE'
            raise UserError(
                f'{shortened(left[0])!r} is not a flag; flags are written {example}'
                f'{nearest(left[0], self._shown)}\n{self._list()}'
            )
        one = bool(self.words) and not self.words.endswith(('…', ']'))
        if (one and len(left) != 1) or (self.words.endswith('…') and not left):
            given = ' '.join(map(shortened, left)) or 'none'
            raise UserError(
                f'give {"one " * one}{self.words}, not {given}; for example: {command} {self.example}'
            )
        for name in self._shown:
            flag = self._flags[name]
            if flag.present and flag.value == '' and name not in self._may_be_empty:
                raise UserError(f'--{name} is empty; {self._shown[name]}: {self._meaning[name]}')
            if isinstance(flag.value, float) and not math.isfinite(flag.value):
                raise UserError(f'--{name}={flag.value}: must be a finite number')
            if name in self._required and flag.value in (None, ''):
                more = f'\nConfigs: {", ".join(config_names())}' if name == 'config' else ''
                raise UserError(f'--{name} is missing, for example: {command} {self.example}{more}')
        if overrides and not self._flags['config'].value:
            raise UserError(f'--config.{overrides[0][0]}: --config is missing; give --config=NAME')
        given = SimpleNamespace(words=left, **{n: self._flags[n].value for n in self._shown})
        given.present = {name for name in self._shown if self._flags[name].present}
        for name, choices in self._choices.items():
            chosen = [word.strip() for word in getattr(given, name).split(',')]
            for word in chosen:
                if word not in choices:
                    raise UserError(
                        f'--{name}: {shortened(word)!r} is none of them{nearest(word, choices)}\n'
                        f'Allowed: {", ".join(choices)}'
                    )
            setattr(given, name, chosen)
        for name, shown in self._shown.items():
            if re.search('=(DIR|FILE)', shown):
                setattr(given, name, expanded(getattr(given, name)))
        if re.search('DIR|FILE', self.words):
            given.words = list(map(expanded, given.words))
        return given

    def _list(self) -> str:
        return 'Flags: ' + ', '.join(f'--{name}' for name in self._shown)

    def _unknown(self, name: str, words: Sequence[str] = ()) -> str:
        said = f'--{shortened(name)}: there is no such flag'
        path = config_word(words) if self._takes_config else ''
        if path:
            fields = [field for field, *_ in config_lib.describe(load_config(path))]
            if f'config.{name}' in fields:
                return f'{said}; a field of the config is set by --config.{name}=…'
            return f'{said}{nearest(name, [*self._shown, *fields])}\n{self._list()}'
        return f'{said}{nearest(name, self._shown)}\n{self._list()}'

    def _refused(self, message: str) -> str:
        """absl's message about a refused value, rewritten as one of jaxdl's."""
        match = re.match(r'flag --(\w+)=(.*?): (.*)', message, re.S)
        if not match:
            return ' '.join(message.split())
        name, value, reason = match.groups()
        parser = self._flags[name].parser if name in self._flags else None
        if isinstance(parser, flags.EnumParser):
            choices = list(parser.enum_values)
            reason = f'must be one of {", ".join(choices)}{nearest(value, choices)}'
        elif parser is not None and parser.syntactic_help:
            reason = f'must be {parser.syntactic_help}'
        return f'--{name}={shortened(value)}: {reason}; {self._meaning.get(name, "")}'


# ---- configs --------------------------------------------------------------------------------------


def load_module(path: str) -> ModuleType:
    """Runs a config file and returns it as a module.

    Raises:
        UserError: it is not a Python file, or running it failed.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(f'configs.{name}', path)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={path}: is no Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look up the file's classes there
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'--config={path}: cannot be loaded, {type(error).__name__}: {error}'
        ) from None
    return module


def config_names(folder: str = '') -> list[str]:
    """The config files of a folder; by default all bare names that --config takes."""
    if folder:
        return sorted(glob.glob(os.path.join(glob.escape(folder), '*.py')))
    folders = [Path('configs'), *([SHIPPED] if SHIPPED else [])]
    found = {path.stem for place in folders for path in place.glob('*.py')}
    return sorted(found - {'__init__'})


def find_config(name: str) -> str:
    """The file of a config: a path, or a bare name in configs/ here or among the shipped ones.

    Raises:
        UserError: there is none; the message names the most similar one.
    """
    name = expanded(name)
    bare = name.isidentifier()
    folders = ([Path('configs'), *([SHIPPED] if SHIPPED else [])]) if bare else [Path()]
    file = f'{name}.py' if bare else name
    for folder in folders:
        if os.path.isfile(folder / file):
            return str(folder / file)
    known = [] if bare else config_names(os.path.dirname(name))
    known = known or config_names()
    what = 'config of this name' if bare else 'such file'
    raise UserError(
        f'--config={shortened(name)}: there is no {what}{nearest(name, known)}.\n'
        f'Configs: {", ".join(known[:40]) or "none"}; a config of your own is given as a file, '
        'DIR/NAME.py'
    )


def load_config(name: str) -> Config:
    """The config of 'name', 'name:variant', 'folder/name.py' or 'folder/name.py:variant'.

    Raises:
        UserError: there is no such file or variant, or it does not return a Config.
    """
    filename, _, variant = name.partition(':')
    filename = find_config(filename)
    module = load_module(filename)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
        raise UserError(f'--config={name}: {filename} has no function get_config(variant)')
    try:
        takes = len(inspect.signature(get_config).parameters)
        if variant and not takes:
            raise UserError(f'--config={shortened(name)}: {filename} has no variants')
        config = get_config(variant) if takes else get_config()
    except (KeyError, ValueError) as error:
        names = [name for name in getattr(module, 'VARIANTS', ()) if name]
        allowed = (
            f'; variants: {", ".join(names)}{nearest(variant, names)}' if names else f' ({error})'
        )
        raise UserError(
            f'--config={shortened(name)}: {filename} has no variant {shortened(variant)!r}{allowed}'
        ) from None
    if not isinstance(config, Config):
        raise UserError(
            f'--config={name}: get_config returned {type(config).__name__}, not a jaxdl.core.config.Config'
        )
    return config


def _split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """(the other words, the (path, text) of all --config.FIELD=VALUE); text is None without '='."""
    rest, overrides = [], []
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        match = re.match(r'--?(no)?config\.([^=]+)(?:=(.*))?$', word, re.S)
        if not match:
            rest.append(word)
            continue
        no, path, text = match.groups()
        if text is None and no:
            text = 'false'
        elif text is None and waiting and not waiting[-1].startswith('-'):
            text = waiting.pop()
        overrides.append((path, text))
    return rest, overrides


def overrides_in(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    """The (path, text) pairs of all --config.FIELD=VALUE words; text is None without a '='."""
    return _split(argv[1:])[1]


def check_path(config: Config, path: str) -> None:
    """Raises UserError unless 'a.b.c' is a field of the config that can be set."""
    node: Any = config
    walked = 'config'
    said = f'--config.{shortened(path)}'
    steps = re.findall(r'([^.\[\]]+)|\[(\d+)\]', path)
    for position, (name, index) in enumerate(steps):
        last = position == len(steps) - 1
        if index:
            if not isinstance(node, tuple | list) or int(index) >= len(node):
                size = len(node) if isinstance(node, tuple | list) else 0
                raise UserError(f'{said}: {walked} has {size} items, there is no [{index}]')
            node, walked = node[int(index)], f'{walked}[{index}]'
            continue
        names = [field.name for field in config_lib.fields(node)]
        if name not in names:
            if not names:
                raise UserError(f'{said}: {walked} is a {type(node).__name__} and has no fields')
            # The user may have meant a field further down: 'lr' is optimizer.learning_rate.
            paths = [p.removeprefix('config.') for p, *_ in config_lib.describe(config)]
            deep = {p.rpartition('.')[2]: p for p in reversed(paths)}
            found = name if name in deep else closest(name, names) or closest(name, deep)
            meant = found if found in names else deep.get(found, '')
            raise UserError(
                f'{said}: {type(node).__name__} has no field {shortened(name)!r}'
                f'{f"; did you mean {meant!r}?" if meant else ""}\n'
                f'Fields of {walked}: {", ".join(names)}'
            )
        value = getattr(node, name)
        if last and (
            config_lib.fields(value)
            or (isinstance(value, tuple) and any(config_lib.fields(item) for item in value))
        ):
            raise UserError(
                f'{said}: is a {type(value).__name__} and cannot be set as a whole; '
                'set its fields, or edit the config file'
            )
        node, walked = value, f'{walked}.{name}'


def apply_overrides(config: Config, overrides: Sequence[tuple[str, str | None]]) -> Config:
    """A copy of `config` with fields set from texts, typed, by ml_collections.config_flags.

    Raises:
        UserError: a field does not exist, or a value has the wrong type.
    """
    from ml_collections import config_flags
    from ml_collections.config_flags import config_path

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
        path, text = next(
            (item for item in overrides if f'config.{item[0]}' in str(error)), overrides[0]
        )
        kind = config_lib.type_name(config_path.get_type(path, config, normalize=False))
        raise UserError(
            f'--config.{path}={shortened(str(text))}: must be {kind}; '
            f'the config has {config_path.get_value(path, config)!r}'
        ) from None
    except (KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(' '.join(str(error).split())) from None


def config_word(words: Sequence[str]) -> str:
    """The value of --config in a command line, or ''."""
    name = ''
    for index, word in enumerate(words):
        if re.match(r'--?config=', word):
            name = word.partition('=')[2]
        elif word in ('--config', '-config') and index + 1 < len(words):
            name = words[index + 1]
    return name


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
