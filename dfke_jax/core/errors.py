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
    """A data set is not where it was looked for; the message names the option that says where it
    is.
    """


class CheckpointError(DfkeError, RuntimeError):
    """A checkpoint cannot be written, or belongs to another configuration."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint was cut off while it was written, or changed since; the message names an older
    sound one, if any.
    """


class NonFiniteError(DfkeError, FloatingPointError):
    """A metric stopped being finite, or the state holds NaN; the message names the step and the
    metric or the array.
    """


class CollapseError(DfkeError, RuntimeError):
    """A generator's images all fall into one class; the message names class, share and step."""


class BudgetError(DfkeError, RuntimeError):
    """Rows were asked that the query budget does not cover; they were not sent.

    Attributes:
      asked: rows of the refused call. spent: rows that count already. budget: the limit.
    """

    def __init__(self, asked: int, spent: int, budget: int, detail: str = ""):
        self.asked, self.spent, self.budget = asked, spent, budget
        super().__init__(
            f"{asked} rows asked, {spent} of a budget of {budget} spent, {max(budget - spent, 0)} "
            f"left{detail}; ask fewer rows or raise the budget"
        )


class LedgerError(DfkeError, RuntimeError):
    """A query ledger cannot be used: damaged, of another endpoint or configuration, or at odds with
    the formula.
    """


class EndpointError(DfkeError, RuntimeError):
    """A remote victim refused or could not be reached: the rows were certainly not answered and
    cost nothing.
    """


class UnknownOutcomeError(EndpointError):
    """Rows were sent, and whether they were answered and counted is not known (or the answer was of
    no use).
    """


class RestartedError(EndpointError):
    """A request was meant for another instance of the endpoint, and this one did not answer it.

    Attributes:
      forgotten: whether the instance that runs does not know what the other one answered.
    """

    def __init__(self, message: str, forgotten: bool):
        self.forgotten = forgotten
        super().__init__(message)


class ReproductionError(DfkeError, RuntimeError):
    """Some of the experiments that run side by side failed; the message names them and their logs."""


class Interrupted(DfkeError, KeyboardInterrupt):  # noqa: N818 - an interruption is not an error of anybody's
    """The run was stopped by Ctrl-C or SIGTERM; its state is saved and the message says how to
    resume.
    """


__all__ = [
    "BudgetError",
    "CheckpointError",
    "CollapseError",
    "DamagedCheckpointError",
    "DfkeError",
    "EndpointError",
    "InputError",
    "Interrupted",
    "LedgerError",
    "MissingDataError",
    "NonFiniteError",
    "ReproductionError",
    "RestartedError",
    "UnknownNameError",
    "UnknownOutcomeError",
]
