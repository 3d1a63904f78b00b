"""What a verdict on a suspect is, whatever was tested, and the tests that decide it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.dataset_inference.case import compare
from dfke_jax.dataset_inference.statistics import (
    SampleCurve,
    WelchTest,
    conformal_p_value,
    permutation_test,
    two_sided,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What can be said about a suspect, be it a classifier or an encoder.

    Attributes:
      stolen: whether the deciding p-value is below alpha / looks and the test works on the victim
        itself. False means inconclusive, never innocent.
      p_value: the one that decides: ``conformal`` where there are independent models, else
        ``welch``.
      decided_by: which one that is.
      p_values: all of them by name: ``welch``, ``permutation``, and ``conformal`` if there are
        independent models.
      alpha: the level of all verdicts that are looked at.
      looks: how many these are, as fixed beforehand; this one accuses below alpha / looks.
      false_alarm_rate: how often the deciding rule accuses an independent model in this one
        verdict: guaranteed for ``conformal``, nominal (alpha / looks) for ``welch``.
      accused_independents: (how many, of how many) independent models have a Welch p-value below
        alpha; None without any. It shows what the Welch test is worth here.
      test: Welch test of the suspect: effect Δμ, its interval, degrees of freedom.
      control: Welch p-value of the victim itself; where it is not small the test has no power here.
      curve: p-value against the number of samples.
      tested: (private, public) samples that entered the test.
      queries: what the suspect was asked; see the kind of verdict.
      assumptions: what has to be true for the p-value to mean what it says.
      notes: what was found that weakens the verdict.
    """

    stolen: bool
    p_value: float
    decided_by: str
    p_values: dict[str, float]
    alpha: float
    looks: int
    false_alarm_rate: float
    accused_independents: tuple[int, int] | None
    test: WelchTest
    control: float
    curve: SampleCurve
    tested: tuple[int, int]
    queries: int
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON takes them: arrays as lists, an interval without an end as None."""
        return plain(self)

    @property
    def effort(self) -> str:
        """What was shown to the suspect and asked of it, behind the effect; every kind of verdict
        has its own.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        low, high = self.test.interval
        lines = [
            f"{'stolen' if self.stolen else 'inconclusive'}: p = {self.p_value:.3g} "
            f"({self.decided_by}), false-alarm rate {self.false_alarm_rate:.3g}",
            f"effect {self.test.effect:.3f} [{low:.3f}, {high:.3f}]{self.effort}",
            *(f"assumes: {text}" for text in self.assumptions),
            *(f"note: {text}" for text in self.notes),
        ]
        return "\n".join(lines)


def plain(value: Any) -> Any:
    """A verdict, or a part of one, as JSON takes it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


class Decision(NamedTuple):
    """What the tests say of one suspect's scores; the fields are those of `Judgement`."""

    test: WelchTest
    p_values: dict[str, float]
    decided_by: str
    false_alarm_rate: float
    accused_independents: tuple[int, int] | None


def decide(
    private: np.ndarray,
    public: np.ndarray,
    null: Sequence[WelchTest],
    level: float,
    permutations: int,
    seed: int,
    *,
    either: bool = False,
) -> Decision:
    """Tests the scores of private against public samples; where there are independent models, their
    ranks decide.

    A p-value below `level` accuses. With `either`, a difference in any direction counts: twice the
    smaller one-sided p-value, and ranks of |t|.
    """
    test = compare(private, public)
    p_values = {
        "welch": two_sided(test) if either else test.p_value,
        "permutation": permutation_test(private, public, permutations, seed),
    }
    if either:
        p_values["permutation"] = min(
            1.0,
            2 * min(p_values["permutation"], permutation_test(public, private, permutations, seed)),
        )
    if not null:
        return Decision(test, p_values, "welch", level, None)
    size = abs if either else float
    p_values["conformal"] = conformal_p_value(
        size(test.statistic), [size(result.statistic) for result in null]
    )
    ranks = len(null) + 1
    rate = int(np.sum(np.arange(1, ranks + 1) / ranks < level)) / ranks
    found = [two_sided(result) if either else result.p_value for result in null]
    return Decision(test, p_values, "conformal", rate, (sum(p < level for p in found), len(null)))


def looked_at(looks: int) -> str:
    """What a verdict assumes of the other verdicts that there are."""
    if looks == 1:
        return (
            "this is the only verdict that is looked at: a second suspect, split or number of "
            "samples, and every look before the end, is one more chance to accuse (looks=N allows "
            "for N)"
        )
    return (
        f"no more than {looks} verdicts are looked at, this one included, as fixed beforehand: "
        f"each accuses below alpha / {looks}"
    )


__all__ = ["Decision", "Judgement", "decide", "looked_at", "plain"]
