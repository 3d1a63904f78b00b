"""White-box distillation with a generator: DAFL, DFAD and ZSKT, each beside a generator that never learns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.distillation import DAFLSettings, DFADSettings, DuelSettings, ZSKTSettings, dafl, dfad, student_of, zskt
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.dafl import dafl_cost
from dfke_jax.distillation.dfad import dfad_cost
from dfke_jax.distillation.duel import DuelState
from dfke_jax.distillation.zskt import zskt_cost
from dfke_jax.evaluation import histogram_entropy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, AnchoredSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation.anchors import DAFL_STUDENT, REAL_DATA
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator, draw_latents
from dfke_jax.nn.players import Maker
from dfke_jax.synthesis.pool import Pool


@dataclasses.dataclass(frozen=True)
class DuelRecipeSettings(AnchoredSettings):
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


@dataclasses.dataclass(frozen=True)
class DAFLRecipeSettings(DuelRecipeSettings):
    """Settings of DAFL."""

    method: DAFLSettings = DAFLSettings(**SMALL, generator_rate=1e-3)
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


def execute(
    name: str,
    label: str,
    make: Callable[[Classifier, Classifier, Any], Method],
    cost: Callable[[Any], Cost],
    config: DuelRecipeSettings,
    bench: Workbench,
) -> list[Arm]:
    """Anchors, the method, and the same with a generator that never learns."""
    arms = bench.anchors()
    settings = config.scheduled
    still = dataclasses.replace(settings, generator_rate=0.0)
    budget = cost(settings).times(config.iterations)
    made = [
        (Arm(name, label, "method", budget=budget), settings),
        (Arm(f"{name}_control", "Generator that never learns", "control", budget=dict(budget)), still),
    ]
    for seed in bench.seeds:
        teacher, student = bench.teacher(seed), bench.network(config.student)
        for arm, how in made:
            method = make(teacher, student, how)
            state = bench.stage(
                "distillation", f"{arm.name}/duel", seed, method, config.iterations, rows=how.batch_size,
                draws_as=f"{name}/duel",
            )  # fmt: skip
            learnt = student_of(student, state)
            entropy = _look(bench, arm.name, seed, teacher, state, how)
            bench.record(arm, learnt, teacher, class_entropy=entropy)
    return arms + [arm for arm, _ in made]


def _look(
    bench: Workbench, name: str, seed: int, teacher: Classifier, state: DuelState, settings: DuelSettings
) -> float:
    """Keeps pictures of the last generator; the entropy of the teacher's mean answer to them, as a share of log K."""
    generator = DFMEGenerator(teacher.input_shape, settings.width, settings.latent)
    maker = Maker(generator, teacher.preprocessing, optax.identity(), settings.output)  # it learns no more
    z = draw_latents(bench.key(seed, "pictures"), (500,), generator)
    images, _ = jax.jit(maker.images)(state.generator.variables, z)
    logits = teacher(images)
    bench.keep(name, Pool(images, jnp.argmax(logits, -1), jnp.int32(500), ()), seed)
    return histogram_entropy(np.asarray(jax.nn.softmax(logits)).mean(0), normalised=True)


def _register(
    name: str,
    title: str,
    summary: str,
    paper: str,
    config: type,
    make: Callable,
    cost: Callable,
    published: tuple[Published, ...],
) -> None:
    register(
        Recipe(
            name=name,
            title=title,
            summary=summary,
            paper=paper,
            config=config,
            execute=lambda config, bench: execute(name, name.upper(), make, cost, config, bench),
            published=(*published, *REAL_DATA),
            presets={"digits": {**DISTILLED_DIGITS, "iterations": 1000}},
        )
    )


_register(
    "dafl",
    "DAFL: data-free learning of student networks",
    "A generator makes images that the teacher is sure of, that excite its features and that cover its classes; the student "
    "learns the teacher's answers to the same batches. The control's generator never learns.",
    "Chen et al.: Data-Free Learning of Student Networks, ICCV 2019",
    DAFLRecipeSettings,
    dafl,
    dafl_cost,
    (Published("dafl", "mnist", 98.20, "Chen et al., ICCV 2019 (DAFL), Table 1", "readme", differs=DAFL_STUDENT),),
)
_register(
    "dfad",
    "DFAD: data-free adversarial distillation",
    "A generator climbs the distance of the student's logits from the teacher's, which the student descends five times as "
    "often. The control's generator never learns.",
    "Fang et al.: Data-Free Adversarial Distillation, 2019",
    DFADRecipeSettings,
    dfad,
    dfad_cost,
    (Published("dfad", "mnist", 98.3, "Fang et al., 2019 (DFAD)", "readme", differs=DAFL_STUDENT),),
)
_register(
    "zskt",
    "ZSKT: zero-shot knowledge transfer by belief matching",
    "A generator climbs the KL divergence of the student's answers from the teacher's, which the student descends ten times "
    "on the images of the same latents. The control's generator never learns.",
    "Micaelli, Storkey: Zero-Shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019",
    ZSKTRecipeSettings,
    zskt,
    zskt_cost,
    (),
)

__all__ = ["DAFLRecipeSettings", "DFADRecipeSettings", "DuelRecipeSettings", "ZSKTRecipeSettings"]
