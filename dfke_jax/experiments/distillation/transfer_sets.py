"""Distillation on what lies around: noise of several kinds, and the images of another data set."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.distillation.transfer_sets import balanced, unbalanced
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, AnchoredSettings, TransferSettings
from dfke_jax.experiments.bench.students import distil
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import (
    DAFL_STUDENT,
    REAL_DATA,
    anchor_arms,
    keep_similarity,
    measure_anchors,
)
from dfke_jax.synthesis.fitting import fitted
from dfke_jax.synthesis.starts import gaussian_noise, smooth_noise, uniform_noise


@dataclasses.dataclass(frozen=True)
class TransferSetSettings(TransferSettings, AnchoredSettings):
    """Settings of arbitrary transfer sets."""

    samples: int = 3000
    """Images in every transfer set."""
    unrelated: str = "digits"
    """Another data set whose training images serve as unrelated images; empty for none."""


KINDS: dict[str, tuple[str, Callable[..., Array]]] = {
    "uniform_noise": ("Uniform noise", uniform_noise),
    "gaussian_noise": ("Gaussian noise", lambda key, shape: gaussian_noise(key, shape, 0.5, 0.3)),
    "smooth_noise": ("Smooth noise", smooth_noise),
}


def arms(config: TransferSetSettings) -> list[Arm]:
    """Noise of three kinds, and unrelated images as they come and balanced by the teacher's answers."""
    noise = [Arm(name, label, "baseline") for name, (label, _) in KINDS.items()]
    unrelated = [
        Arm("unrelated_balanced_control", f"Images of {config.unrelated}", "control"),
        Arm("unrelated_balanced", f"Images of {config.unrelated}, balanced", "method"),
    ]
    return [*anchor_arms(config), *noise, *(unrelated if config.unrelated else ())]


def prepare(bench: Workbench) -> np.ndarray | None:
    """The unrelated images, as large as the data's."""
    config: TransferSetSettings = bench.config  # type: ignore[assignment]
    if config.samples < bench.dataset.num_classes:
        raise InputError(f"samples must be at least the number of classes, got {config.samples}")
    if not config.unrelated:
        return None
    return fitted(data.load(config.unrelated, data_dir=bench.data_dir).train.images, bench.dataset.shape)


def measure(run: Run[TransferSetSettings]) -> None:
    """Distils on every transfer set."""
    measure_anchors(run)
    count, images = run.config.samples, run.shared
    budget = budgets.distilled(run.config, count)
    for name, (_, draw) in KINDS.items():
        noise = draw(run.key(name), (count, *run.dataset.shape))
        run.record(name, distil(run, name, noise), budget=budget)
    if images is not None:
        chosen = unbalanced(images, count, run.seed)
        student = distil(run, "unrelated", jax.device_put(chosen))
        run.record("unrelated_balanced_control", student, budget=budget)
        chosen, counts = balanced(images, run.teacher, count, run.seed)
        student = distil(run, "unrelated_balanced", jnp.asarray(chosen))
        # to balance them the teacher answers all images of the other set
        budget = budgets.distilled(run.config, count, other_rows=len(images))
        run.record("unrelated_balanced", student, {"empty_classes": int((counts == 0).sum())}, budget=budget)
    keep_similarity(run)


register(
    Recipe(
        name="transfer-sets",
        title="Arbitrary transfer sets: noise and unrelated images",
        summary="Distils on uniform, Gaussian and smooth noise and on the images of another data set, as they come and "
        "balanced by the teacher's answers. No synthesis: what any method has to beat.",
        paper="Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets for Data-Free Distillation, WACV 2021",
        config=TransferSetSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        published=(
            Published("gaussian_noise", "mnist", 88.01, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", "N(0, 1) in normalised space", DAFL_STUDENT),
            Published("uniform_noise", "mnist", 74.7, "Fang et al., 2019 (DFAD), repository's table", "readme", "±3.3"),
            Published("unrelated_balanced_control", "mnist", 95.7, "Fang et al., 2019 (DFAD), repository's table", "readme", "unrelated data"),
            *REAL_DATA,
        ),
        presets={"digits": {**DISTILLED_DIGITS, "unrelated": "", "samples": 1000}, "mnist": {"unrelated": "fashion_mnist"},
                 "fashion_mnist": {"unrelated": "mnist"}},
    )
)  # fmt: skip

__all__ = ["TransferSetSettings"]
