"""What can go wrong, by name. Every message says what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class DfkeError(Exception):
    """Base of all errors that the package raises on purpose."""


class InputError(DfkeError, ValueError):
    """An argument is outside what the function accepts."""


class UnknownNameError(DfkeError, ValueError):
    """A name is not in a registry; the message lists the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {what} {name!r}; {hint}")


class MissingDataError(DfkeError, FileNotFoundError):
    """A data set is not where it was looked for; the message names the option that says where it is."""


class CheckpointError(DfkeError, RuntimeError):
    """A checkpoint cannot be written, or belongs to another configuration."""


class NonFiniteError(DfkeError, FloatingPointError):
    """A metric stopped being finite; the message names the step and the metric."""


class Interrupted(DfkeError, KeyboardInterrupt):  # noqa: N818 - an interruption is not an error of anybody's
    """The run was stopped by Ctrl-C or SIGTERM; its state is saved and the message says how to resume."""


__all__ = [
    "CheckpointError",
    "DfkeError",
    "InputError",
    "Interrupted",
    "MissingDataError",
    "NonFiniteError",
    "UnknownNameError",
]
