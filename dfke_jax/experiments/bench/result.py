"""What a recipe leaves behind: one `result.json` from which every printed number comes."""

import dataclasses
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dfke_jax.core.checkpoint import write_whole
from dfke_jax.core.revision import revision
from dfke_jax.evaluation.summary import summarise

SCHEMA = 1
BEHIND = "_behind_"
"""Stands in the name of an arm between an attack and the defence that it met."""
Role = Literal["teacher", "method", "control", "baseline", "anchor"]


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure from the literature, to stand next to ours.

    Attributes:
      arm: the arm that it is to be compared with.
      dataset: the data set it was measured on.
      value: in per cent.
      source: paper and table.
      provenance: how the figure reached us: ``code`` (the authors' repository), ``readme`` (its text), ``table``
        (another paper's table), ``recalled`` (from the paper as remembered, to be confirmed).
      note: what differs from our setting, in words.
      differs: what differs so much that ``reproduced`` would say too much (another method, another network); such a figure is
        shown beside ours and not judged.
    """

    arm: str
    dataset: str
    value: float
    source: str
    provenance: Literal["code", "readme", "table", "recalled"]
    note: str = ""
    differs: str = ""


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
      budget: counts of what the arm used: ``synthetic_samples``, ``synthesis_steps``, ``teacher_rows`` (rows of which the
        teacher's answer or gradient was taken), ``distillation_steps``, ``real_samples``.
      metrics: anything else worth keeping, per seed.
      control: name of the arm that is its matched control, where it is not ``{name}_control`` or ``control``.
    """

    name: str
    label: str
    role: Role
    accuracy: list[float] = dataclasses.field(default_factory=list)
    agreement: list[float] = dataclasses.field(default_factory=list)
    budget: dict[str, int] = dataclasses.field(default_factory=dict)
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    control: str = ""


@dataclasses.dataclass
class Result:
    """Everything that is known about a finished run of a recipe."""

    recipe: str
    title: str
    dataset: str
    config: dict[str, Any]
    seeds: list[int]
    arms: list[Arm]
    published: list[Published]
    seconds: dict[str, float]
    environment: dict[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def metrics(self) -> dict[str, dict]:
        """Flat ``{arm}_accuracy``, ``{arm}_agreement``, ... -> values, mean, spread (sd over seeds) and number."""
        flat = {}
        for arm in self.arms:
            for kind, values in {"accuracy": arm.accuracy, "agreement": arm.agreement, **arm.metrics}.items():
                if values:
                    flat[f"{arm.name}_{kind}"] = summarise(values)
        for method, control in self.pairs():
            gains = [a - b for a, b in zip(method.accuracy, control.accuracy, strict=True)]
            flat[f"{method.name}_gain_over_control"] = summarise(gains)
        return flat

    def pairs(self) -> list[tuple[Arm, Arm]]:
        """Every method arm with its matched control: the one it names, else ``{method}_control``, else ``control``."""
        by_name = {arm.name: arm for arm in self.arms if arm.role == "control"}
        found = [
            (arm, by_name.get(arm.control or f"{arm.name}_control") or by_name.get("control"))
            for arm in self.arms
            if arm.role == "method"
        ]
        return [(method, control) for method, control in found if control is not None]

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "title": self.title,
            "dataset": self.dataset,
            "config": self.config,
            "seeds": self.seeds,
            "metrics": self.metrics,
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "published": [dataclasses.asdict(figure) for figure in self.published],
            "notes": self.notes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "environment": self.environment,
        }

    def write(self, directory: str | os.PathLike) -> Path:
        """Writes `result.json` whole or not at all."""
        return write_whole(Path(directory) / "result.json", json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Result":
        """The result in a directory, or in a `result.json`."""
        path = Path(path)
        content = json.loads((path / "result.json" if path.is_dir() else path).read_text())
        return cls(
            **{
                name: content[name]
                for name in ("recipe", "title", "dataset", "config", "seeds", "seconds", "environment", "notes")
            },
            arms=[Arm(**arm) for arm in content["arms"]],
            published=[Published(**figure) for figure in content["published"]],
        )


def environment() -> dict[str, Any]:
    """Versions, device and code revision, as far as they can be found."""
    import jax

    versions = {}
    for package in (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "chex",
        "tensorflow-datasets",
        "numpy",
        "dfke-jax",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "revision": revision(),
    }


__all__ = ["BEHIND", "SCHEMA", "Arm", "Published", "Result", "Role", "environment"]
