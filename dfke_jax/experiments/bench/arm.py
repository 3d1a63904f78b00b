"""One column of an experiment: figures seed by seed, series over what was varied, and trials by statistical tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dfke_jax.core.errors import InputError

Role = Literal["teacher", "method", "control", "baseline", "anchor"]
Level = str | int


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure from the literature, to stand next to ours.

    Attributes:
      arm: the arm that it is to be compared with.
      dataset: the data set it was measured on.
      value: in per cent.
      source: paper and table.
      provenance: how the figure reached us: ``code`` (the authors' repository), ``readme`` (its text), ``table``
        (another paper's table), ``slides`` (printed in a lecture or tutorial, which `source` names), ``recalled`` (from
        the paper as remembered, to be confirmed).
      note: what differs from our setting, in words.
      differs: what differs so much that ``reproduced`` would say too much (another method, another network); such a
        figure is shown beside ours and not judged.
      factors: as of an `Arm`, where the figure belongs to a series of arms.
      networks: teacher and student, by name, that the figure is of; empty where one stands for whatever is run.
    """

    arm: str
    dataset: str
    value: float
    source: str
    provenance: Literal["code", "readme", "table", "slides", "recalled"]
    note: str = ""
    differs: str = ""
    factors: Mapping[str, Level] = dataclasses.field(default_factory=dict)
    networks: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "networks", tuple(self.networks))  # a list, where it was read from a file

    def concerns(self, config: Any) -> bool:
        """Whether it stands beside runs of these settings: of their data set and, where it names networks, of theirs."""
        ours = (getattr(config, "teacher", ""), getattr(config, "student", ""))
        return self.dataset == config.dataset and (not self.networks or tuple(self.networks) == ours)


@dataclasses.dataclass(frozen=True)
class Series:
    """A figure against something that was varied while an arm was made or tested.

    Attributes:
      name: of the figure, such as ``accuracy``.
      over: what was varied, such as ``queries``.
      x: (P,) its values, in rising order.
      y: (S, P) the figure, a list a seed.
    """

    name: str
    over: str
    x: tuple[float, ...]
    y: list[list[float]]

    @classmethod
    def of_seed(cls, name: str, over: str, points: Mapping[int, float] | Mapping[float, float]) -> "Series":
        """That of a single seed, from value of `over` -> figure."""
        pairs = sorted(points.items())
        return cls(name, over, tuple(float(x) for x, _ in pairs), [[float(y) for _, y in pairs]])

    def at(self, x: float) -> list[float]:
        """The figure at one point, seed by seed.

        Raises:
          InputError: at another point.
        """
        if x not in self.x:
            raise InputError(f"{self.name} over {self.over} was not measured at {x:g}, but at {_listed(self.x)}")
        return [values[self.x.index(x)] for values in self.y]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A statistical test of whether a suspect is what it is accused of, seed by seed.

    Attributes:
      test: its name, such as ``welch``.
      p_values: a seed each, with all their digits; of a control that is many models, the median over them.
      false_positives: of such a control: per cent of the models that the test accuses, a seed each.
    """

    test: str
    p_values: list[float] = dataclasses.field(default_factory=list)
    false_positives: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Arm:
    """One column of an experiment: a network trained in one way, once per seed.

    Attributes:
      name: its key in `metrics`, e.g. ``data_impressions``.
      label: how figures and tables call it.
      role: ``method``; ``control`` (the same pipeline with the method's own step switched off); ``baseline`` (noise,
        unrelated images); ``anchor`` (real data); ``teacher``.
      accuracy: per seed, on the test set, last iterate, in per cent.
      agreement: per seed, share of test images on which student and teacher agree, in per cent; empty for teachers.
      budget: counts of what the arm used: ``synthetic_samples``, ``synthesis_steps``, ``teacher_rows`` (rows of which
        the teacher's answer or gradient was taken), ``distillation_steps``, ``real_samples``.
      metrics: anything else worth keeping, per seed.
      control: name of the arm that is its matched control, where it is not ``{name}_control`` or ``control``.
      factors: where the arm stands among others, factor -> level: ``{"attack": "DFME", "queries": 10000}``,
        ``{"attack": "DFME", "defence": "label"}``. Levels are as tables write them.
      series, trials: see `Series` and `Trial`; at most one series of a name over the same, one trial a test.
    """

    name: str
    label: str
    role: Role
    accuracy: list[float] = dataclasses.field(default_factory=list)
    agreement: list[float] = dataclasses.field(default_factory=list)
    budget: dict[str, int] = dataclasses.field(default_factory=dict)
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    control: str = ""
    factors: Mapping[str, Level] = dataclasses.field(default_factory=dict)
    series: list[Series] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Arm":
        """An arm from what `dataclasses.asdict` makes of it."""
        series = [Series(**{**one, "x": tuple(one["x"])}) for one in content.get("series", ())]
        return cls(**{**content, "series": series, "trials": [Trial(**one) for one in content.get("trials", ())]})

    def over(self, what: str, name: str) -> Series | None:
        """The series of a figure over what was varied, if there is one."""
        return next((one for one in self.series if (one.over, one.name) == (what, name)), None)

    def trial(self, test: str) -> Trial | None:
        """The trial by a test, if there was one."""
        return next((one for one in self.trials if one.test == test), None)

    @property
    def p_values(self) -> dict[str, list[float]]:
        """Test -> p-values, seed by seed."""
        return {trial.test: trial.p_values for trial in self.trials if trial.p_values}

    @property
    def false_positives(self) -> dict[str, list[float]]:
        """Test -> per cent of innocent models that it accuses, seed by seed."""
        return {trial.test: trial.false_positives for trial in self.trials if trial.false_positives}


def joined(arms: Sequence[Arm]) -> Arm:
    """One arm with all seeds of several, in their order.

    Raises:
      InputError: series over other points.
    """
    first = arms[0]
    names = dict.fromkeys(name for arm in arms for name in arm.metrics)
    pairs = dict.fromkeys((one.over, one.name) for arm in arms for one in arm.series)
    tests = dict.fromkeys(trial.test for arm in arms for trial in arm.trials)
    return dataclasses.replace(
        first,
        accuracy=_together(arm.accuracy for arm in arms),
        agreement=_together(arm.agreement for arm in arms),
        metrics={name: _together(arm.metrics.get(name, []) for arm in arms) for name in names},
        series=[_joined_series([one for arm in arms if (one := arm.over(*pair))]) for pair in pairs],
        trials=[
            Trial(
                test,
                _together(arm.p_values.get(test, []) for arm in arms),
                _together(arm.false_positives.get(test, []) for arm in arms),
            )
            for test in tests
        ],
    )


def _joined_series(parts: Sequence[Series]) -> Series:
    first = parts[0]
    for part in parts[1:]:
        if part.x != first.x:
            raise InputError(
                f"{first.name} over {first.over} was measured at {_listed(first.x)} and at {_listed(part.x)}"
            )
    return dataclasses.replace(first, y=[values for part in parts for values in part.y])


def _together(lists) -> list[Any]:
    return [value for values in lists for value in values]


def _listed(points: Sequence[float]) -> str:
    return ", ".join(f"{point:g}" for point in points)


__all__ = ["Arm", "Level", "Published", "Role", "Series", "Trial", "joined"]
