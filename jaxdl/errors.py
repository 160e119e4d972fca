"""How a command ends: its errors, their exit codes and their messages; checks of fields."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(Exception):
    """The user's mistake: one or two lines with the value, what is allowed and the fix (exit 2)."""

    exit_code = 2


class Diverged(Exception):
    """Training produced non-finite values and config.divergence says to stop (exit 3)."""

    exit_code = 3


class Preempted(Exception):
    """A signal asked the run to stop; a checkpoint was saved (exit 75)."""

    exit_code = 75


class NotSaved(OSError):
    """A run reached its end, but its last checkpoint could not be written (exit 1)."""

    exit_code = 1


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` and returns the exit code: 0 done, 2 the user's mistake, 3 diverged,
    75 preempted, 1 anything else. The message goes to standard error.
    """
    try:
        return int(main(list(sys.argv if argv is None else argv)) or 0)
    except SystemExit as stop:  # raised after --help
        return int(stop.code or 0)
    except (UserError, Diverged, Preempted, NotSaved) as error:
        kind = {3: 'diverged', 75: 'preempted'}.get(error.exit_code, 'error')
        lines = [shortened(line, 1500) for line in f'{kind}: {error}'.splitlines()]
        print('\n'.join(lines), file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:  # only where the program did not call `signals.listen`
        print('interrupted', file=sys.stderr)
        return 75
    except Exception:
        import traceback

        traceback.print_exc()
        return 1


def shortened(text: str, most: int = 80) -> str:
    """`text` on one line; the middle is left out if it has more than `most` characters."""
    text = text if text.isprintable() else repr(text)[1:-1]
    if len(text) <= most:
        return text
    half = most // 2
    return f'{text[:half]} … {text[-half:]} ({len(text):,} characters)'


def closest(name: str, options: Iterable[str]) -> str:
    """The option most similar to `name`, or ''.

    Either few letters differ or `name` is an abbreviation: 'lr' of learning_rate.
    """
    import difflib  # imported here because only a failing command needs it

    options = list(map(str, options))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not close and name:
        initials = [o for o in options if ''.join(w[:1] for w in o.split('_')) == name.lower()]
        close = initials or [o for o in options if o.startswith(name.lower())]
    return close[0] if close else ''


def nearest(name: str, options: Iterable[str]) -> str:
    """The hint "; did you mean 'x'?" with the closest of `options`, or ''."""
    found = closest(name, options)
    return f'; did you mean {found!r}?' if found else ''


# ---- what `check` methods are made of: fields that are wrong raise ValueError -------------------


def at_least(holder: object, **bounds: float) -> None:
    """Raises ValueError where a field of `holder` is below its bound, infinite or not a number."""
    for name, low in bounds.items():
        value = getattr(holder, name)
        if not value >= low or value == math.inf:
            raise ValueError(f'{name}={value}: must be at least {low}')


def above_zero(holder: object, *names: str) -> None:
    """Raises ValueError where a field of `holder` is not above 0, or infinite."""
    for name in names:
        if not 0 < getattr(holder, name) < math.inf:
            raise ValueError(f'{name}={getattr(holder, name)}: must be above 0')


def below_one(holder: object, *names: str) -> None:
    """Raises ValueError where a number of `holder` is not in [0, 1); traced values pass."""
    for name in names:
        value = getattr(holder, name)
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f'{name}={value}: must be in [0, 1)')


def one_of(holder: object, **choices: Iterable) -> None:
    """Raises ValueError where a field of `holder` is none of its choices."""
    for name, allowed in choices.items():
        value = getattr(holder, name)
        if value not in allowed:
            raise ValueError(
                f'{name}={value!r}: must be one of {", ".join(map(repr, allowed))}'
                f'{nearest(str(value), allowed)}'
            )


def check_pattern(pattern: str) -> None:
    """Raises ValueError where `pattern` is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f'{pattern!r} is not a regular expression: {error}') from None
