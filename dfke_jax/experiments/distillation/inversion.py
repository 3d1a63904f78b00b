"""DeepDream prior, DeepInversion and adaptive DeepInversion, side by side."""

import dataclasses

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.distillation.deep_inversion import InversionSettings, adaptive_deep_inversion, deep_inversion
from dfke_jax.experiments.bench.budgets import opponent_rows
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, PoolSettings, augmentation, own_model
from dfke_jax.experiments.distillation.anchors import REAL_DATA, keep_similarity
from dfke_jax.experiments.distillation.syntheses import SynthesisRecipe, measure_syntheses, synthesis_arms
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE
from dfke_jax.nn.registry import describe

ARMS = {
    "deep_dream": "DeepDream prior",
    "deep_inversion": "DeepInversion",
    "adaptive_deep_inversion": "Adaptive DeepInversion",
}


@dataclasses.dataclass(frozen=True)
class InversionRecipeSettings(PoolSettings):
    """Settings of DeepInversion and its relatives."""

    teacher: str = "lenet5_bn"
    """Network of the teacher; it needs batch normalisation."""
    arms: tuple[str, ...] = tuple(ARMS)
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
        if (
            self.synthesis.statistics
            and set(self.arms) != {"deep_dream"}
            and not (own_model(self.teacher) or describe(self.teacher).batch_norm)
        ):
            raise InputError(
                f"DeepInversion needs a teacher with batch normalisation and {self.teacher} has none; "
                "use lenet5_bn, a ResNet or a WRN"
            )


def methods(config: InversionRecipeSettings) -> list[SynthesisRecipe]:
    """The methods, which start from the same images and share one control."""
    size = config.samples, config.synthesis_batch

    def dream(run: Run, control: bool) -> Method:
        settings = dataclasses.replace(config.synthesis, statistics=0.0)
        return deep_inversion(run.teacher, settings, *size, control=control)

    def invert(run: Run, control: bool) -> Method:
        return deep_inversion(run.teacher, config.synthesis, *size, control=control)

    def adapt(run: Run, control: bool) -> Method:
        if control:
            return invert(run, control)
        return adaptive_deep_inversion(
            run.teacher, run.network(config.student), config.synthesis, *size, student_steps=config.student_steps,
            temperature=config.temperature, augment=augmentation(config.augmentation),
        )  # fmt: skip

    makers = dict(zip(ARMS, (dream, invert, adapt), strict=True))
    answered = {"adaptive_deep_inversion": lambda run: {"other_rows": opponent_rows(config)}}
    return [
        SynthesisRecipe(
            name,
            ARMS[name],
            makers[name],
            config.synthesis.steps,
            control="control" if name == config.arms[0] else None,
            draws_as="inversion",
            used=answered.get(name, lambda run: {}),
        )
        for name in config.arms
    ]


def measure(run: Run[InversionRecipeSettings]) -> None:
    """Anchors, noise, one control for all methods, and the methods."""
    measure_syntheses(run, methods(run.config))
    keep_similarity(run)


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
        if arms != tuple(ARMS)
        else InversionRecipeSettings,
        arms=lambda config: synthesis_arms(config, methods(config)),
        measure=measure,
        views=(SIDE_BY_SIDE,),
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
        tuple(ARMS),
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
