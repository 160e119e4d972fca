"""The ways a command ends early, each with its exit code."""


class UserError(Exception):
    """The user's mistake: one or two lines with the value, what is allowed and the fix (exit 2)."""

    exit_code = 2


class Diverged(Exception):
    """Training produced non-finite values and the policy said to stop (exit 3)."""

    exit_code = 3


class Preempted(Exception):
    """A signal asked the run to stop; a checkpoint was saved (exit 75)."""

    exit_code = 75


class NotSaved(OSError):
    """A run reached its end, but its last checkpoint could not be written (exit 1)."""

    exit_code = 1


def nearest(name: str, options) -> str:
    """Returns "; did you mean 'x'?" for the closest of `options`, or ''.

    Close means few letters changed, or an abbreviation: 'lr' is learning_rate, 'wd' weight_decay.
    """
    import difflib

    options = [str(option) for option in options]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not close and name:
        initials = [o for o in options if ''.join(w[:1] for w in o.split('_')) == name.lower()]
        close = initials or [o for o in options if o.startswith(name.lower())]
    return f'; did you mean {close[0]!r}?' if close else ''
