"""The experiments whose results the documentation shows, by name, with what they change against their recipe's preset."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments.registry import recipe
from dfke_jax.experiments.result import Result
from dfke_jax.experiments.run import run_recipe


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One documented run.

    Attributes:
      recipe, dataset: what is run on what.
      description: what it shows.
      time: what it took on a machine of two CPU cores, where it was measured.
      changes: configuration fields that differ from the preset; those of nested settings as a dictionary.
    """

    recipe: str
    dataset: str
    description: str
    time: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def config(self) -> Any:
        """The configuration."""
        base = recipe(self.recipe).settings(self.dataset)
        changes = {
            name: dataclasses.replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in self.changes.items()
        }
        return dataclasses.replace(base, **changes)


_LARGE = {"samples": 24000, "distillation_steps": 20000, "baselines": False}
# The noise baseline depends on teacher, data and distillation budget alone; the data-impressions rows carry it.
_NO_NOISE = {"baselines": False}

EXPERIMENTS: dict[str, Experiment] = {
    "anchors-mnist": Experiment("anchors", "mnist", "what real data gives", "5 min"),
    "anchors-fashion_mnist": Experiment("anchors", "fashion_mnist", "what real data gives", "not measured"),
    "data-impressions-mnist": Experiment(
        "data-impressions", "mnist", "image prior, 3,000 impressions", "14 min, shared core"
    ),
    "data-impressions-fashion_mnist": Experiment(
        "data-impressions", "fashion_mnist", "image prior, 3,000", "24 min, shared core"
    ),
    "data-impressions-mnist-blind": Experiment(
        "data-impressions",
        "mnist",
        "the same, start level and contrast blind to the data",
        "8 min, shared cores",
        {"baselines": False, "synthesis": {"start_mean": (0.0, 1.0), "start_sd": (0.0, 1.0)}},
    ),
    "zskd-mnist": Experiment(
        "zskd", "mnist", "no image prior, 3,000 impressions of 200 steps", "12 min, shared core", _NO_NOISE
    ),
    "zskd-fashion_mnist": Experiment(
        "zskd", "fashion_mnist", "no image prior, 3,000 of 200 steps", "not measured", _NO_NOISE
    ),
    "activation-records-mnist": Experiment(
        "activation-records", "mnist", "top layer and all layers", "17 min, shared core"
    ),
    "class-impressions-mnist": Experiment(
        "class-impressions", "mnist", "3,000 class impressions", "not measured", _NO_NOISE
    ),
    "class-impressions-fashion_mnist": Experiment(
        "class-impressions", "fashion_mnist", "3,000 class impressions", "29 min, shared core", _NO_NOISE
    ),
    "deep-inversion-mnist": Experiment(
        "deep-inversion", "mnist", "DeepDream, plain and adaptive", "32 min, shared core"
    ),
    "deep-inversion-fashion_mnist": Experiment(
        "deep-inversion", "fashion_mnist", "DeepDream, plain and adaptive", "17 min, shared cores"
    ),
    "transfer-sets-mnist": Experiment("transfer-sets", "mnist", "noise; clothes as unrelated images", "not measured"),
    "transfer-sets-fashion_mnist": Experiment(
        "transfer-sets", "fashion_mnist", "noise; digits as unrelated", "not measured"
    ),
    "data-impressions-mnist-24k": Experiment(
        "data-impressions", "mnist", "image prior, 24,000", "28 min, shared cores", _LARGE
    ),
    "data-impressions-fashion_mnist-24k": Experiment(
        "data-impressions", "fashion_mnist", "image prior, 24,000", "not measured", _LARGE
    ),
    "zskd-mnist-published": Experiment(
        "zskd",
        "mnist",
        "the published budget: 24,000 impressions of 1,500 steps, both scalings, the paper's augmentations",
        "12 min",
        {
            "samples": 24000,
            "synthesis_batch": 100,
            "synthesis": {"steps": 1500},
            "seeds": 1,
            "distillation_steps": 10000,
            "other_augmentations": ("published",),
            **_NO_NOISE,
        },
    ),
    "dfme-mnist": Experiment("dfme", "mnist", "extraction from answers, with its control", "21 min, one shared core"),
    "dfme-mnist-1m": Experiment(
        "dfme",
        "mnist",
        "the same with a million queries, in larger batches",
        "not measured",
        {"budgets": (1_000_000,), "control": False, "attack": {"batch_size": 256, "replay_capacity": 200_000}},
    ),
    "megex-mnist": Experiment("megex", "mnist", "extraction with explanations, with its control", "not measured"),
    "disguide-mnist": Experiment(
        "disguide",
        "mnist",
        "extraction by two clones that disagree, with its control",
        "21 min without the control, one shared core",
    ),
    "dfms-mnist": Experiment("dfms", "mnist", "extraction from labels, with its control", "not measured"),
    "knockoff-mnist": Experiment(
        "knockoff", "mnist", "other digits, of 8×8 pixels, asked in random order, and noise", "16 min, shared cores"
    ),
    "knockoff-mnist-clothes": Experiment(
        "knockoff", "mnist", "the same with clothes for a pool", "not measured", {"pool_dataset": "fashion_mnist"}
    ),
    "active-thief-mnist": Experiment(
        "active-thief", "mnist", "other digits chosen in ten rounds", "23 min, shared cores"
    ),
    "defences-mnist": Experiment(
        "defences", "mnist", "three attacks behind eight defences, 10,000 queries", "not measured"
    ),
    "watermark-removal-mnist": Experiment(
        "watermark-removal", "mnist", "every removal attack on a backdoor", "not measured"
    ),
    "watermark-removal-fashion_mnist": Experiment(
        "watermark-removal", "fashion_mnist", "every removal attack on a backdoor", "not measured"
    ),
    "watermark-schemes-mnist": Experiment(
        "watermark-schemes", "mnist", "eight watermarks: cost, survival, false alarms", "not measured"
    ),
    "ewe-mnist": Experiment("ewe", "mnist", "an entangled watermark, copied by labels", "not measured", {"seeds": 5}),
    "ewe-fashion_mnist": Experiment(
        "ewe", "fashion_mnist", "an entangled watermark, copied by labels", "not measured", {"seeds": 5}
    ),
    "dataset-inference-synthetic": Experiment(
        "dataset-inference",
        "synthetic",
        "nine thieves and 30 independent models, 600 private images",
        "23 min, cores shared by eight",
    ),
    "dataset-inference-fashion_mnist": Experiment(
        "dataset-inference",
        "fashion_mnist",
        "nine thieves and 21 independent models, 2,000 private images",
        "not measured",
    ),
    "dataset-inference-limits-synthetic": Experiment(
        "dataset-inference-limits",
        "synthetic",
        "overlapping public samples; a stolen model that forgets",
        "not measured",
    ),
    # What lies between 3,000 impressions of 200 steps and the published figure? One change at a time.
    "zskd-mnist-1500-steps": Experiment(
        "zskd", "mnist", "as zskd-mnist, 1,500 steps", "not measured", {"synthesis": {"steps": 1500}, **_NO_NOISE}
    ),
    "zskd-mnist-24k": Experiment(
        "zskd", "mnist", "as zskd-mnist, 24,000 impressions", "not measured", {"samples": 24000, **_NO_NOISE}
    ),
    "zskd-mnist-long": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, 30,000 distillation steps",
        "not measured",
        {"distillation_steps": 30000, **_NO_NOISE},
    ),
    "zskd-mnist-augmented-teacher": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, teacher trained with rotation, scaling and shifts",
        "not measured",
        {"teacher_augmentation": "affine", **_NO_NOISE},
    ),
    "zskd-mnist-released": Experiment(
        "zskd",
        "mnist",
        "as zskd-mnist, the released code's start, scaling and batches",
        "not measured",
        {"synthesis": {"released": True}, "synthesis_batch": 150, **_NO_NOISE},
    ),
}


def main(
    names: Sequence[str] = (),
    *,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[Result]:
    """Runs experiments one after another and keeps their results; those that are done are not repeated.

    Args:
      names: of `EXPERIMENTS`; all by default.
      out: directory that receives ``NAME.json``. Everything else goes to ``runs/reproduce/NAME``.
      data_dir: where data sets are found.
      progress: whether progress bars are shown.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise UnknownNameError("experiment", name, EXPERIMENTS)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for name in names or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        work = Path("runs") / "reproduce" / name
        result = run_recipe(
            recipe(experiment.recipe), experiment.config(), out=work, data_dir=data_dir, resume=True, progress=progress
        )
        shutil.copy(work / "result.json", out / f"{name}.json")
        results.append(result)
    return results


__all__ = ["EXPERIMENTS", "Experiment", "main"]
