"""What a run is watched for: figures that are not finite, and generators that collapse."""

import dataclasses
import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.checkpoint import Checkpoints
from dfke_jax.core.errors import CollapseError, InputError, NonFiniteError, UnknownNameError
from dfke_jax.core.types import PyTree

LARGEST_CLASS, LARGEST_SHARE = "largest_class", "largest_share"
REACTIONS = ("warn", "raise", "ignore")


@dataclasses.dataclass(frozen=True)
class Guard:
    """When a generator has collapsed, and what is done about it.

    A method takes part that reports ``largest_share``, the share of its images that the teacher
    puts into one class, and ``largest_class``, which (see `dfke_jax.nn.answers.class_metrics`; with
    several heads ``largest_share/HEAD``).

    Attributes:
      collapse: ``warn`` once a run, ``raise`` a `CollapseError`, or ``ignore``. A generator that
        was never told anything often makes images of one class, and a control's stays so: that is a
        finding and no fault, hence the warning.
      share: in (0, 1], from which on a batch counts as collapsed.
      patience: so many steps in a row, >= 1; those before a resumption are not counted.

    Raises:
      InputError, UnknownNameError: for values that mean nothing.
    """

    collapse: Literal["warn", "raise", "ignore"] = "warn"
    share: float = 1.0
    patience: int = 200

    def __post_init__(self):
        if self.collapse not in REACTIONS:
            raise UnknownNameError("reaction to a collapse", self.collapse, REACTIONS)
        if not 0 < self.share <= 1 or self.patience < 1:
            raise InputError(
                f"share must lie in (0, 1] and patience be at least 1, got {self.share} and "
                f"{self.patience}"
            )


class Watch:
    """A `Guard` over one run."""

    def __init__(self, guard: Guard, checkpoints: Checkpoints | None):
        self.guard, self.checkpoints = guard, checkpoints
        self.collapsed: dict[str, np.ndarray] = {}  # steps in a row, by head; (M,) of a population
        self.said = guard.collapse == "ignore"

    def look(self, metrics: dict[str, np.ndarray], offset: int) -> None:
        """Looks at the metrics (steps, ...) of a chunk that began at step `offset`.

        Raises:
          NonFiniteError, CollapseError.
        """
        self._finite(metrics, offset)
        for name in metrics:
            if name.partition("/")[0] == LARGEST_SHARE and not self.said:
                self._collapse(metrics, name, offset)

    def _finite(self, metrics: dict[str, np.ndarray], offset: int) -> None:
        bad = {
            name: np.array(~np.isfinite(value).reshape(len(value), -1).all(1))
            for name, value in metrics.items()
        }
        steps = [int(steps.argmax()) for steps in bad.values() if steps.any()]
        if not steps:
            return
        first = min(steps)
        spoilt = [name for name in metrics if bad[name][first]]
        terms = ", ".join(map(repr, spoilt))
        text = f"metric {terms} is" if len(spoilt) == 1 else f"metrics {terms} are"
        text += f" not finite at step {offset + first}"
        if first:  # what grew beyond bounds is told from what came suddenly
            before = ", ".join(_shown(metrics[name][first - 1]) for name in spoilt)
            text += f" ({before} a step before)"
        raise NonFiniteError(text + last_sound(self.checkpoints))

    def _collapse(self, metrics: dict[str, np.ndarray], name: str, offset: int) -> None:
        full = np.asarray(metrics[name] >= self.guard.share)
        head = name.removeprefix(LARGEST_SHARE)
        row = self.collapsed.get(name, np.zeros(full.shape[1:], int))
        for i, step in enumerate(full):
            row = np.asarray(np.where(step, row + 1, 0))
            if (row >= self.guard.patience).any():
                member = int(np.argmax(row))
                share, largest = (
                    np.ravel(metrics[of + head][i])[member] for of in (LARGEST_SHARE, LARGEST_CLASS)
                )
                whose = f" of member {member}" if row.ndim else ""
                which = f" (head {head[1:]})" if head else ""
                return self._say(
                    f"the teacher puts {100 * share:.4g}% of the generator's images{whose} into class "
                    f"{int(largest)}{which}, "
                    f"and did so for {self.guard.patience} steps up to step {offset + i}: the generator "
                    "has collapsed, or "
                    "the teacher answers nothing else; a lower rate of the generator, larger batches or "
                    "a larger weight of the entropy over a batch may help"
                )
        self.collapsed[name] = row

    def _say(self, text: str) -> None:
        if self.guard.collapse == "raise":
            raise CollapseError(text + last_sound(self.checkpoints))
        self.said = True
        warnings.warn(text, stacklevel=6)


def holds_nan(state: PyTree) -> jax.Array:
    """Whether any array of a state holds NaN; infinity may stand for "not found yet"."""
    spoilt = jnp.zeros((), bool)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            spoilt = spoilt | jnp.isnan(leaf).any()
    return spoilt


holds_nan_alone = jax.jit(holds_nan)


def name_spoilt(state: PyTree, done: int, checkpoints: Checkpoints | None) -> None:
    """Raises the `NonFiniteError` of a state that holds NaN, with the names of its arrays."""
    names = [
        jax.tree_util.keystr(path) or "itself"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if hasattr(leaf, "dtype") and bool(holds_nan_alone(leaf))
    ]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise NonFiniteError(
        f"the state holds NaN after step {done - 1}: {shown}{last_sound(checkpoints)}"
    )


def last_sound(checkpoints: Checkpoints | None) -> str:
    """Where the last sound state is, to be put behind a message."""
    if checkpoints is None or checkpoints.latest is None:
        return ""
    return (
        f"; the last sound state is that after step {checkpoints.latest} in {checkpoints.directory}"
    )


def _shown(value: np.ndarray) -> str:
    return f"{float(value):.4g}" if np.ndim(value) == 0 else f"up to {np.abs(value).max():.4g}"


__all__ = [
    "LARGEST_CLASS",
    "LARGEST_SHARE",
    "Guard",
    "Watch",
    "holds_nan",
    "holds_nan_alone",
    "last_sound",
    "name_spoilt",
]
