"""What a recipe leaves behind: one `result.json` from which every printed number comes."""

import dataclasses
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from dfke_jax.core.checkpoint import write_whole
from dfke_jax.core.revision import revision
from dfke_jax.evaluation.summary import summarise
from dfke_jax.experiments.bench.arm import Arm, Published, Role, Series, Trial
from dfke_jax.experiments.bench.schema_one import from_schema_one

SCHEMA = 2


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
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of every stage without compiling, over all seeds; empty where they were not kept."""

    def taken_by(self, arm: Arm) -> float | None:
        """Seconds a seed that an arm's own stages took; None where they were not kept."""
        own = [seconds for name, seconds in self.stages.items() if name.startswith(f"{arm.name}/")]
        return sum(own) / len(self.seeds) if own else None

    @property
    def metrics(self) -> dict[str, dict]:
        """Flat ``{arm}_accuracy``, ``{arm}_agreement``, ... -> values, mean, spread (sd over seeds) and number.

        Series are in the arms alone.
        """
        flat = {}
        for arm in self.arms:
            known = {"accuracy": arm.accuracy, "agreement": arm.agreement, **arm.metrics, **arm.p_values}
            for kind, values in known.items():
                if values:
                    flat[f"{arm.name}_{kind}"] = summarise(values)
        for method, control in self.pairs():
            gains = [a - b for a, b in zip(method.accuracy, control.accuracy, strict=True)]
            if gains:
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

    @property
    def published_here(self) -> list[Published]:
        """The published figures that were measured on this data set, whatever version of it."""
        return [figure for figure in self.published if _base(figure.dataset) == _base(self.dataset)]

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
            "published": [
                {**dataclasses.asdict(figure), "networks": list(figure.networks)} for figure in self.published
            ],
            "notes": self.notes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "environment": self.environment,
        }

    def write(self, directory: str | os.PathLike) -> Path:
        """Writes `result.json` whole or not at all."""
        return write_whole(Path(directory) / "result.json", json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Result":
        """The result in a directory, or in a `result.json`; of this schema or the first."""
        path = Path(path)
        content = json.loads((path / "result.json" if path.is_dir() else path).read_text())
        if content["schema"] == 1:
            content = from_schema_one(content)
        return cls(
            **{
                name: content[name]
                for name in ("recipe", "title", "dataset", "config", "seeds", "seconds", "environment", "notes")
            },
            arms=[Arm.from_json(arm) for arm in content["arms"]],
            published=[Published(**figure) for figure in content["published"]],
            stages=content.get("stages", {}),
        )


def _base(dataset: str) -> str:
    return dataset.split(":")[0].casefold()


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


__all__ = ["SCHEMA", "Arm", "Published", "Result", "Role", "Series", "Trial", "environment"]
