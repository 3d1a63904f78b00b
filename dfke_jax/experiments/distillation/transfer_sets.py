"""Distillation on what lies around: noise of several kinds, and the images of another data set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.distillation import transfer_sets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, AnchoredSettings, TransferSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import DAFL_STUDENT, REAL_DATA
from dfke_jax.synthesis.starts import gaussian_noise, smooth_noise, uniform_noise


@dataclasses.dataclass(frozen=True)
class TransferSetSettings(TransferSettings, AnchoredSettings):
    """Settings of arbitrary transfer sets."""

    samples: int = 3000
    """Images in every transfer set."""
    unrelated: str = "digits"
    """Another data set whose training images serve as unrelated images; empty for none."""


def execute(config: TransferSetSettings, bench: Workbench) -> list[Arm]:
    """Noise of three kinds, and unrelated images as they come and balanced by the teacher's answers."""
    if config.samples < bench.dataset.num_classes:
        raise InputError(f"samples must be at least the number of classes, got {config.samples}")
    arms = bench.anchors()
    shape = bench.dataset.shape
    kinds = {
        "uniform_noise": ("Uniform noise", uniform_noise),
        "gaussian_noise": ("Gaussian noise", lambda key, shape: gaussian_noise(key, shape, 0.5, 0.3)),
        "smooth_noise": ("Smooth noise", smooth_noise),
    }
    for name, (label, draw) in kinds.items():
        arm = Arm(name, label, "baseline", budget=bench.distilled_budget(config.samples))
        for seed in bench.seeds:
            images = draw(bench.key(seed, name), (config.samples, *shape))
            teacher = bench.teacher(seed)
            bench.record(arm, bench.distil(name, seed, teacher, images), teacher)
        arms.append(arm)
    if config.unrelated:
        other = data.load(config.unrelated, data_dir=bench.data_dir)
        images = transfer_sets.fitted(other.train.images, shape)
        arms += [_unrelated(config, bench, images, balance) for balance in (False, True)]
    bench.similarity()
    return arms


def _unrelated(config: TransferSetSettings, bench: Workbench, images: np.ndarray, balance: bool) -> Arm:
    name = "unrelated_balanced" if balance else "unrelated"
    label = f"Images of {config.unrelated}" + (", balanced" if balance else "")
    # to balance them the teacher answers all images of the other set
    budget = bench.distilled_budget(config.samples, other_rows=len(images) if balance else 0)
    arm = Arm(name, label, "method" if balance else "control", budget=budget)
    if not balance:
        arm.name = "unrelated_balanced_control"
    for seed in bench.seeds:
        teacher = bench.teacher(seed)
        if balance:
            chosen, counts = transfer_sets.balanced(images, teacher, config.samples, seed)
            empty = int((counts == 0).sum())
            bench.record(arm, bench.distil(name, seed, teacher, jnp.asarray(chosen)), teacher, empty_classes=empty)
        else:
            chosen = transfer_sets.unbalanced(images, config.samples, seed)
            bench.record(arm, bench.distil(name, seed, teacher, jax.device_put(chosen)), teacher)
    return arm


register(
    Recipe(
        name="transfer-sets",
        title="Arbitrary transfer sets: noise and unrelated images",
        summary="Distils on uniform, Gaussian and smooth noise and on the images of another data set, as they come and "
        "balanced by the teacher's answers. No synthesis: what any method has to beat.",
        paper="Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets for Data-Free Distillation, WACV 2021",
        config=TransferSetSettings,
        execute=execute,
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
