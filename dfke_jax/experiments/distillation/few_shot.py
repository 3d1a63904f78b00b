"""Distillation from a few real images."""

import dataclasses

import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import cross_entropy_training, few_shot, knowledge_distillation
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DISTILLED_DIGITS, AnchoredSettings, augmentation
from dfke_jax.experiments.bench.steadiness import transition_error, watched_stage
from dfke_jax.experiments.distillation.anchors import REAL_DATA, anchor_arms, measure_anchors
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS
from dfke_jax.nn.training import trained


@dataclasses.dataclass(frozen=True)
class FewShotSettings(AnchoredSettings):
    """Settings of distillation from a few real images."""

    real: int = 200
    """Real images, equally many of every class."""

    def __post_init__(self):
        super().__post_init__()
        if self.real < 1:
            raise InputError(f"real must be at least 1, got {self.real}")


def arms(config: FewShotSettings) -> list[Arm]:
    """The student that learns the teacher's answers to a few images, and one that learns their labels."""
    method = Arm("few_shot", f"Distilled with {config.real} real images", "method")
    control = Arm("few_shot_control", f"Labels of the same {config.real} images", "control")
    return [*anchor_arms(config, scratch=True), method, control]


def measure(run: Run[FewShotSettings]) -> None:
    """One seed: both learn from the same augmented batches."""
    measure_anchors(run)
    c, train = run.config, run.dataset.train
    student = run.network(c.student)
    rows = few_shot(train.labels, c.real, run.seed)
    images, labels = jnp.asarray(train.images[rows]), jnp.asarray(train.labels[rows])
    run.keep("few_shot", images, labels)
    training = {
        "steps": c.distillation_steps,
        "batch_size": c.distillation_batch,
        "learning_rate": c.distillation_learning_rate,
        "augment": augmentation(c.real_augmentation),
    }
    methods = {
        "few_shot": knowledge_distillation(student, run.teacher, images, temperature=c.temperature, **training),
        "few_shot_control": cross_entropy_training(student, images, labels, **training),
    }
    taught = budgets.distilled(c, real=c.real)
    budget = {"few_shot": taught, "few_shot_control": {**taught, "teacher_rows": 0}}
    for name, method in methods.items():
        state, steady = watched_stage(
            run, f"{name}/student", method, c.distillation_steps, student,
            rows=c.distillation_batch, draws_as="few_shot/student",
        )  # fmt: skip
        learnt = trained(student, state)
        run.record(name, learnt, {**steady, **transition_error(run, learnt)}, budget=budget[name])


register(
    Recipe(
        name="few-shot",
        title="Few-shot distillation: a few hundred real images",
        summary="Distils on a few real images, equally many of every class, with the teacher's answers to their augmented "
        "batches. The control learns the same images by their labels.",
        paper="Kimura et al.: Few-shot learning of neural networks from scratch by pseudo example optimization, BMVC 2018",
        config=FewShotSettings,
        arms=arms,
        measure=measure,
        labels=True,
        views=(STEADINESS, SIDE_BY_SIDE),
        published=(
            Published(
                "few_shot", "mnist", 86.70, "Kimura et al. 2018, as in Mopuri's tutorial of 2023, 'Performance' (MNIST)",
                "slides", "200 images", "theirs optimises pseudo examples besides, and augments nothing",
            ),
            Published(
                "few_shot", "fashion_mnist", 72.50, "Kimura et al. 2018, as in Nayak et al., ICML 2019 (ZSKD)",
                "recalled", "200 images", "theirs optimises pseudo examples besides, and augments nothing",
            ),
            *REAL_DATA,
        ),
        presets={"digits": DISTILLED_DIGITS},
    )
)  # fmt: skip

__all__ = ["FewShotSettings"]
