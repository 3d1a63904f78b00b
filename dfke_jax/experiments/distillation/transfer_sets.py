"""Distillation on what lies around: noise, pictures of random shapes, images of another data set; balanced or not."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.distillation.transfer_sets import balanced_by_moving, balanced_rows, unbalanced
from dfke_jax.evaluation.diversity import histogram_entropy
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
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE
from dfke_jax.synthesis.fitting import fitted
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import gaussian_noise, smooth_noise, uniform_noise


@dataclasses.dataclass(frozen=True)
class TransferSetSettings(TransferSettings, AnchoredSettings):
    """Settings of arbitrary transfer sets."""

    samples: int = 3000
    """Images in every transfer set."""
    unrelated: str = "digits"
    """Another data set whose training images serve as unrelated images; empty for none."""
    candidates: int = 10_000
    """Pictures of noise, and of random shapes, that a balanced set is drawn from."""
    fill: Literal["repeat", "move"] = "repeat"
    """How classes with too few images are filled: by repeats, or by images of other classes that are moved until the
    teacher answers so."""

    def __post_init__(self):
        super().__post_init__()
        if self.candidates < self.samples:
            raise InputError(f"candidates ({self.candidates}) must be at least samples ({self.samples})")


KINDS: dict[str, tuple[str, Callable[..., Array]]] = {
    "uniform_noise": ("Uniform noise", uniform_noise),
    "gaussian_noise": ("Gaussian noise", lambda key, shape: gaussian_noise(key, shape, 0.5, 0.3)),
    "smooth_noise": ("Smooth noise", smooth_noise),
}
BALANCED = "uniform_noise"
"""The kind of noise that is balanced as well."""


def arms(config: TransferSetSettings) -> list[Arm]:
    """Noise, pictures of random shapes and unrelated images, as they come and balanced by the teacher's answers."""
    noise = [Arm(name, label, "control" if name == BALANCED else "baseline") for name, (label, _) in KINDS.items()]
    made = [
        Arm("noise_balanced", "Uniform noise, balanced", "method", control=BALANCED),
        Arm("shapes_balanced_control", "Random shapes", "control"),
        Arm("shapes_balanced", "Random shapes, balanced", "method"),
    ]
    unrelated = [
        Arm("unrelated_balanced_control", f"Images of {config.unrelated}", "control"),
        Arm("unrelated_balanced", f"Images of {config.unrelated}, balanced", "method"),
    ]
    return [*anchor_arms(config), *noise, *made, *(unrelated if config.unrelated else ())]


class Candidates(NamedTuple):
    """What all seeds draw from: random shapes, and unrelated images or None."""

    shapes: np.ndarray
    unrelated: np.ndarray | None


def prepare(bench: Workbench) -> Candidates:
    """Pictures of random shapes and the unrelated images, as large as the data's."""
    config: TransferSetSettings = bench.config  # type: ignore[assignment]
    shape = bench.dataset.shape
    if config.samples < bench.dataset.num_classes:
        raise InputError(f"samples must be at least the number of classes, got {config.samples}")
    shapes = synthetic_shapes(bench.key(config.seed, "shapes"), config.candidates, shape)
    if not config.unrelated:
        return Candidates(np.asarray(shapes), None)
    other = data.load(config.unrelated, data_dir=bench.data_dir).train.images
    return Candidates(np.asarray(shapes), fitted(other, shape))


def measure(run: Run[TransferSetSettings]) -> None:
    """Distils on every transfer set."""
    measure_anchors(run)
    c, shared = run.config, run.shared
    for name, (_, draw) in KINDS.items():
        images = draw(run.key(name), (c.samples, *run.dataset.shape))
        run.record(name, distil(run, name, images), budget=budgets.distilled(c, c.samples))
    noise = uniform_noise(run.key("noise_balanced"), (c.candidates, *run.dataset.shape))
    _balanced(run, "noise_balanced", np.asarray(noise))
    for kind, images in (("shapes", shared.shapes), ("unrelated", shared.unrelated)):
        if images is not None:
            student = distil(run, kind, jnp.asarray(unbalanced(images, c.samples, run.seed)))
            budget = budgets.distilled(c, c.samples)
            run.record(f"{kind}_balanced_control", student, budget=budget)
            _balanced(run, f"{kind}_balanced", images)
    keep_similarity(run)


def _balanced(run: Run[TransferSetSettings], name: str, images: np.ndarray) -> None:
    """Balances images by the teacher's answers, distils on what comes of it and records it."""
    c = run.config
    if c.fill == "move":
        made = balanced_by_moving(images, run.teacher, c.samples, run.seed)
        chosen, counts, asked = made.images, made.counts, made.asked
        metrics = {"moved_share": 100 * made.moved / c.samples}
    else:
        answers = run.teacher.predict(images).argmax(1)
        counts, asked = np.bincount(answers, minlength=run.teacher.num_classes), len(images)
        chosen, metrics = images[balanced_rows(answers, c.samples, run.seed)], {}
        if np.count_nonzero(counts) < 2:
            run.note(
                f"{run.arms[name].label}: the teacher of seed {run.seed} sees one class in all "
                f"{len(images)} images, so that nothing was balanced; fill='move' makes the others."
            )
    metrics["empty_classes"] = int((counts == 0).sum())
    metrics["class_entropy"] = histogram_entropy(counts, normalised=True)  # before balancing
    # to balance them the teacher answers all images that they are drawn from
    budget = budgets.distilled(c, c.samples, other_rows=asked)
    run.record(name, distil(run, name, jnp.asarray(chosen)), metrics, budget=budget)


register(
    Recipe(
        name="transfer-sets",
        title="Arbitrary transfer sets: noise, shapes and unrelated images",
        summary="Distils on noise, on pictures of random shapes and on the images of another data set, each as it comes and "
        "balanced by the teacher's answers. No synthesis: what any method has to beat.",
        paper="Nayak, Mopuri, Chakraborty: Effectiveness of Arbitrary Transfer Sets for Data-Free Distillation, WACV 2021",
        config=TransferSetSettings,
        arms=arms,
        measure=measure,
        views=(SIDE_BY_SIDE,),
        prepare=prepare,
        published=(
            Published("gaussian_noise", "mnist", 88.01, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", "N(0, 1) in normalised space", DAFL_STUDENT),
            Published("uniform_noise", "mnist", 74.7, "Fang et al., 2019 (DFAD), repository's table", "readme", "±3.3"),
            Published("unrelated_balanced_control", "mnist", 95.7, "Fang et al., 2019 (DFAD), repository's table", "readme", "unrelated data"),
            *REAL_DATA,
        ),
        presets={"digits": {**DISTILLED_DIGITS, "unrelated": "", "samples": 1000, "candidates": 2000}, "mnist": {"unrelated": "fashion_mnist"},
                 "fashion_mnist": {"unrelated": "mnist"}},
    )
)  # fmt: skip

__all__ = ["TransferSetSettings"]
