"""White-box distillation with a generator: DAFL, DFAD, ZSKT and DFQ, each beside a generator that never learns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array
from dfke_jax.distillation import (
    DAFLSettings,
    DFADSettings,
    DFQSettings,
    DuelSettings,
    ZSKTSettings,
    dafl,
    dfad,
    dfq,
    student_of,
    zskt,
)
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.dafl import dafl_cost
from dfke_jax.distillation.dfad import dfad_cost
from dfke_jax.distillation.dfq import dfq_cost
from dfke_jax.distillation.duel import DuelState
from dfke_jax.distillation.zskt import zskt_cost
from dfke_jax.evaluation import histogram_entropy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, GeneratedSettings
from dfke_jax.experiments.bench.splitting import synthesis_apart
from dfke_jax.experiments.bench.steadiness import student_variables, transition_error, watched_stage
from dfke_jax.experiments.distillation.anchors import DAFL_STUDENT, REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.syntheses import sample_diversity
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator, draw_latents
from dfke_jax.nn.players import Maker
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class DuelRecipeSettings(GeneratedSettings):
    """What recipes with a generator and a student have in common."""

    iterations: int = 2000
    """Updates of the generator; the schedules of both players span them."""
    method: Any = None
    """How the method runs; every recipe has settings of its own."""

    def __post_init__(self):
        super().__post_init__()
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, got {self.iterations}")

    @property
    def scheduled(self) -> Any:
        """The method's settings, for so many iterations."""
        return dataclasses.replace(self.method, steps=self.iterations)


SMALL: dict[str, Any] = {"batch_size": 128, "width": 16, "latent": 64}
"""For LeNets on grey images and CPUs: a sixteenth of the published generator's arithmetic."""


QUICK: dict[str, Any] = {"generator_rate": 0.02, "normalised_output": False}
"""The generator's last layer without normalisation, which would hold the mean of every batch at the middle of the box: digits
and clothes are mostly black. Published code normalises, too, but in units of the data, where that mean is the data's own.
DAFL's published rate is 0.2: a student learns from what a generator shows in passing, and one that hardly moves shows little."""


@dataclasses.dataclass(frozen=True)
class DAFLRecipeSettings(DuelRecipeSettings):
    """Settings of DAFL."""

    method: DAFLSettings = DAFLSettings(**SMALL, **QUICK)
    """How the method runs."""


@dataclasses.dataclass(frozen=True)
class DFADRecipeSettings(DuelRecipeSettings):
    """Settings of DFAD."""

    method: DFADSettings = DFADSettings(**SMALL, student_optimizer="adam", student_rate=2e-3, schedule="cosine")
    """How the method runs."""


@dataclasses.dataclass(frozen=True)
class ZSKTRecipeSettings(DuelRecipeSettings):
    """Settings of ZSKT."""

    method: ZSKTSettings = ZSKTSettings(**SMALL, attention=0.0)
    """How the method runs; LeNets of two widths share maps, so attention can be switched on."""


@dataclasses.dataclass(frozen=True)
class DFQRecipeSettings(DuelRecipeSettings):
    """Settings of DFQ."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    method: DFQSettings = DFQSettings(**SMALL, student_optimizer="adam", student_rate=2e-3)
    """How the method runs."""


@dataclasses.dataclass(frozen=True)
class DuelRecipe:
    """A method of this kind: its arms' name, the method itself, and what an iteration costs."""

    name: str
    make: Callable[[Classifier, Classifier, Any], Method]
    cost: Callable[[Any], Cost]

    def arms(self, config: DuelRecipeSettings) -> list[Arm]:
        """Anchors, the method, and the same with a generator that never learns."""
        budget = self.cost(config.scheduled).times(config.iterations)
        method = Arm(self.name, self.name.upper(), "method", budget=budget)
        control = Arm(f"{self.name}_control", "Generator that never learns", "control", budget=budget)
        return [*anchor_arms(config), method, control]

    def measure(self, run: Run[DuelRecipeSettings]) -> None:
        """Trains the students and measures them."""
        measure_anchors(run)
        c, student = run.config, run.network(run.config.student)
        still = dataclasses.replace(c.scheduled, generator_rate=0.0)
        for name, settings in ((self.name, c.scheduled), (f"{self.name}_control", still)):
            method = self.make(run.teacher, student, settings)
            updates = self.cost(settings).student_updates * c.iterations
            with synthesis_apart(run, student, updates, settings.batch_size):
                state, steady = watched_stage(
                    run, f"{name}/duel", method, c.iterations, student, variables=student_variables,
                    rows=settings.batch_size, draws_as=f"{self.name}/duel",
                )  # fmt: skip
            seen, learnt = _look(run, name, state, settings), student_of(student, state)
            run.record(name, learnt, {**seen, **steady, **transition_error(run, learnt)})


def made_images(run: Run[Any], teacher: WhiteBox, state: DuelState, settings: DuelSettings) -> Array:
    """Five hundred pictures (500, H, W, C) of a duel's last generator."""
    generator = DFMEGenerator(teacher.input_shape, settings.width, settings.latent, settings.normalised_output)
    maker = Maker(generator, teacher.preprocessing, optax.identity(), settings.output)  # it learns no more
    z = draw_latents(run.key("pictures"), (500,), generator)
    return jax.jit(maker.images)(state.generator.variables, z)[0]


def _look(run: Run, name: str, state: DuelState, settings: DuelSettings) -> dict[str, float]:
    """Keeps pictures of the last generator; the entropy of the teacher's mean answer to them, as a share of log K, and how
    far they are apart.
    """
    images = made_images(run, run.teacher, state, settings)
    logits = run.teacher(images)
    run.keep(name, images, jnp.argmax(logits, -1))
    entropy = histogram_entropy(np.asarray(jax.nn.softmax(logits)).mean(0), normalised=True)
    return {"class_entropy": entropy, **sample_diversity(run, images)}


DAFL, DFAD, ZSKT = (
    DuelRecipe("dafl", dafl, dafl_cost),
    DuelRecipe("dfad", dfad, dfad_cost),
    DuelRecipe("zskt", zskt, zskt_cost),
)
DFQ = DuelRecipe("dfq", dfq, dfq_cost)
WIDE_RESNETS = {
    "teacher": "wrn_40_2",
    "student": "wrn_16_1",
    "teacher_augmentation": "crop_flip",
    "teacher_steps": 40_000,
}
"""Networks of the published tables on CIFAR-10; for accelerators."""


def _on_digits(iterations: int, **changes: Any) -> dict[str, dict[str, Any]]:
    """The preset of digits: so many iterations that a seed takes a minute or two on two cores."""
    return {"digits": {**DISTILLED_DIGITS, "iterations": iterations, **changes}}


_NARROW: dict[str, Any] = {**SMALL, "width": 8}
"""More than twice as many steps in the same time, which is what adversarial exploration lacks on a CPU."""
_GREY: dict[str, dict[str, Any]] = {
    "dafl": {"iterations": 3000},
    "dfad": {
        "iterations": 1000,
        "method": DFADSettings(**_NARROW, **QUICK, student_optimizer="adam", student_rate=2e-3, schedule="cosine"),
    },
    "zskt": {"iterations": 800, "method": ZSKTSettings(**_NARROW, **QUICK, attention=0.0)},
}
"""Presets of MNIST and Fashion-MNIST, chosen on held-back training images of MNIST: see docs/notes."""


register(
    Recipe(
        name="dafl",
        title="DAFL: data-free learning of student networks",
        summary="A generator makes images that the teacher is sure of, that excite its features and that cover its classes; "
        "the student learns the teacher's answers to the same batches. The control's generator never learns.",
        paper="Chen et al.: Data-Free Learning of Student Networks, ICCV 2019",
        config=DAFLRecipeSettings,
        arms=DAFL.arms,
        measure=DAFL.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published("dafl", "mnist", 98.20, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", differs=DAFL_STUDENT),
            *REAL_DATA,
        ),
        presets={
            **_on_digits(1000, method=DAFLSettings(**SMALL, generator_rate=1e-3)),
            "mnist": _GREY["dafl"],
            "fashion_mnist": _GREY["dafl"],
        },
    )
)
register(
    Recipe(
        name="dfad",
        title="DFAD: data-free adversarial distillation",
        summary="A generator climbs the distance of the student's logits from the teacher's, which the student descends five "
        "times as often. The control's generator never learns.",
        paper="Fang et al.: Data-Free Adversarial Distillation, 2019",
        config=DFADRecipeSettings,
        arms=DFAD.arms,
        measure=DFAD.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published("dfad", "mnist", 98.3, "Fang et al., 2019 (DFAD)", "readme", differs=DAFL_STUDENT),
            *REAL_DATA,
        ),
        presets={**_on_digits(500), "mnist": _GREY["dfad"], "fashion_mnist": _GREY["dfad"]},
    )
)
register(
    Recipe(
        name="zskt",
        title="ZSKT: zero-shot knowledge transfer by belief matching",
        summary="A generator climbs the KL divergence of the student's answers from the teacher's, which the student descends "
        "ten times on the images of the same latents. The control's generator never learns.",
        paper="Micaelli, Storkey: Zero-Shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019",
        config=ZSKTRecipeSettings,
        arms=ZSKT.arms,
        measure=ZSKT.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=REAL_DATA,
        presets={**_on_digits(400), "mnist": _GREY["zskt"], "fashion_mnist": _GREY["zskt"]},
    )
)
register(
    Recipe(
        name="dfq",
        title="DFQ: adversarial distillation under stored statistics",
        summary="A generator climbs the KL divergence of the student's answers from the teacher's while its images keep to the "
        "statistics in the teacher's normalisation layers and cover its classes. The control's generator never learns.",
        paper="Choi, Choi, El-Khamy, Lee: Data-Free Network Quantization with Adversarial Knowledge Distillation, CVPR-W 2020",
        config=DFQRecipeSettings,
        arms=DFQ.arms,
        measure=DFQ.measure,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published(
                "dfq",
                "cifar10",
                86.14,
                "toolbox of Fang et al., IJCAI 2021 (CMI), table of results",
                "readme",
                "WRN-40-2 of 94.87 % to WRN-16-1",
            ),
            *REAL_DATA,
        ),
        datasets=("digits", "mnist", "fashion_mnist", "cifar10"),
        presets={
            **_on_digits(300),
            "cifar10": {
                **WIDE_RESNETS,
                "iterations": 8000,
                "method": DFQSettings(batch_size=256, width=64, latent=256),
            },
        },
    )
)

__all__ = [
    "QUICK",
    "SMALL",
    "WIDE_RESNETS",
    "DAFLRecipeSettings",
    "DFADRecipeSettings",
    "DFQRecipeSettings",
    "DuelRecipe",
    "DuelRecipeSettings",
    "ZSKTRecipeSettings",
    "made_images",
]
