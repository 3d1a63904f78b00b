"""DeepDream prior, DeepInversion and adaptive DeepInversion, side by side."""

import dataclasses

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.distillation.deep_inversion import InversionSettings, adaptive_deep_inversion, deep_inversion
from dfke_jax.experiments.bench.budgets import opponent_rows
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, PoolSettings, augmentation
from dfke_jax.experiments.bench.workbench import Workbench, opening_arms, synthesis_arms
from dfke_jax.experiments.distillation.anchors import REAL_DATA
from dfke_jax.nn.registry import describe

ARMS = ("deep_dream", "deep_inversion", "adaptive_deep_inversion")


@dataclasses.dataclass(frozen=True)
class InversionRecipeSettings(PoolSettings):
    """Settings of DeepInversion and its relatives."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    arms: tuple[str, ...] = ARMS
    """Which methods: deep_dream, deep_inversion, adaptive_deep_inversion."""
    samples: int = 1280
    """Synthesised images."""
    synthesis_batch: int = 256
    """Images whose statistics are matched together."""
    student_steps: int = 400
    """Adaptive: distillation steps of the opponent after every batch."""
    synthesis: InversionSettings = InversionSettings(steps=200)
    """How images are inverted."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.arms:
            if name not in ARMS:
                raise UnknownNameError("arm", name, ARMS)
        if not self.arms:
            raise InputError(f"choose at least one arm of {', '.join(ARMS)}")
        if self.synthesis.statistics and set(self.arms) != {"deep_dream"} and not describe(self.teacher).batch_norm:
            raise InputError(
                f"DeepInversion needs a teacher with batch normalisation and {self.teacher} has none; "
                "use lenet5_bn, a ResNet or a WRN"
            )


def execute(config: InversionRecipeSettings, bench: Workbench) -> list[Arm]:
    """Anchors, noise, one control for all methods (they start from the same images), and the methods."""
    arms = opening_arms(config, bench)
    count, batch = config.samples, config.synthesis_batch
    labels = {
        "deep_dream": "DeepDream prior",
        "deep_inversion": "DeepInversion",
        "adaptive_deep_inversion": "Adaptive DeepInversion",
    }
    for name in config.arms:
        settings = dataclasses.replace(config.synthesis, statistics=0.0) if name == "deep_dream" else config.synthesis

        def make(teacher, seed, control, name=name, settings=settings):
            if name == "adaptive_deep_inversion" and not control:
                return adaptive_deep_inversion(
                    teacher, bench.network(config.student), settings, count, batch, student_steps=config.student_steps,
                    temperature=config.temperature, augment=augmentation(config.augmentation),
                )  # fmt: skip
            return deep_inversion(teacher, settings, count, batch, control=control)

        control = "control" if name == config.arms[0] else None
        steps = config.synthesis.steps
        arms += synthesis_arms(
            bench, name, labels[name], make, count, batch, steps, control=control, draws_as="inversion",
            other_rows=opponent_rows(config) if name == "adaptive_deep_inversion" else 0,
        )  # fmt: skip
    bench.similarity()
    return arms


def _recipe(name: str, title: str, summary: str, arms: tuple[str, ...], time: str) -> Recipe:
    small = InversionSettings(steps=100)
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper="Yin et al.: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020",
        config=dataclasses.make_dataclass(
            f"{title.replace(' ', '')}Settings",
            [("arms", tuple[str, ...], arms)],
            bases=(InversionRecipeSettings,),
            frozen=True,
        )
        if arms != ARMS
        else InversionRecipeSettings,
        execute=execute,
        published=REAL_DATA,
        time=time,
        presets={
            "digits": {**DISTILLED_DIGITS, "samples": 1024, "synthesis": small},
            # chosen on training images that were held back: see docs/distillation.md
            "fashion_mnist": {
                "synthesis": InversionSettings(
                    steps=200, statistics=1.0, start="smooth", start_mean=(0.0, 1.0), start_sd=(0.0, 1.0)
                )
            },
        },
    )


register(
    _recipe(
        "deep-inversion",
        "DeepInversion",
        "Images whose batch statistics agree with those stored in the teacher's normalisation layers, beside the "
        "DeepDream prior (without them) and the adaptive form (images that divide teacher and student).",
        ARMS,
        "32 min on one of two shared CPU cores (mnist, 3 seeds)",
    )
)
register(
    _recipe(
        "deep-dream",
        "DeepDream prior",
        "Images of a class under total variation alone: DeepInversion without the statistics.",
        ("deep_dream",),
        "",
    )
)
register(
    _recipe(
        "adaptive-deep-inversion",
        "Adaptive DeepInversion",
        "DeepInversion whose images also divide teacher and student; the student learns between the batches.",
        ("deep_inversion", "adaptive_deep_inversion"),
        "",
    )
)

__all__ = ["ARMS", "InversionRecipeSettings"]
