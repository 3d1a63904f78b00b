"""Amalgamation: teachers of some classes each, and one student of all of them, without data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array
from dfke_jax.distillation import DFKASettings, Teachers, dfka, student_of
from dfke_jax.distillation.dfka import dfka_cost, task_accuracies
from dfke_jax.evaluation import accuracy, agreement
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DIGITS, StudentSettings, SupervisedSettings
from dfke_jax.experiments.bench.supervision import supervised_training
from dfke_jax.experiments.bench.workbench import Answers
from dfke_jax.experiments.distillation.duels import QUICK, SMALL, made_images
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE
from dfke_jax.nn.answers import each_head
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.heads import Heads
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.named import network
from dfke_jax.nn.registry import build
from dfke_jax.nn.training import trained, training


@dataclasses.dataclass(frozen=True)
class DFKARecipeSettings(StudentSettings, SupervisedSettings):
    """Settings of amalgamation."""

    teachers: int = 2
    """Teachers, each of a share of the classes in their order."""
    iterations: int = 2000
    """Updates of the generator and of the student."""
    method: DFKASettings = DFKASettings(**SMALL, **QUICK, schedule="cosine")
    """How the method runs."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.teachers, self.iterations) < 1:
            raise InputError(f"teachers and iterations must be at least 1, got {self.teachers} and {self.iterations}")


def arms(config: DFKARecipeSettings) -> list[Arm]:
    """The teachers together, a student of real images, the student, and one of a generator that never learns."""
    budget = dfka_cost(config.method, config.teachers).times(config.iterations)
    return [
        Arm("teacher", f"{config.teachers} teachers ({config.teacher})", "teacher"),
        Arm("real_data", "Distilled with real data", "anchor"),
        Arm("dfka", "DFKA", "method", budget=budget),
        Arm("dfka_control", "Generator that never learns", "control", budget=budget),
    ]


def measure(run: Run[DFKARecipeSettings]) -> None:
    """Trains the teachers on their classes, and all students."""
    c, sizes = run.config, _sizes(run)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    teachers = tuple(
        _teacher(run, i, start, size) for i, (start, size) in enumerate(zip(starts[:-1], sizes, strict=True))
    )
    together = Teachers(members=teachers)
    _enter(run, "teacher", together, sizes, None)
    like = run.network(c.student)
    module = Heads(build(c.student, run.dataset.num_classes), sizes)
    student = Classifier.create(module, jax.random.key(0), like.input_shape, like.preprocessing)
    whole = dataclasses.replace(c.method, steps=c.iterations)
    real = run.stage("distillation", "real_data/student", _on_real_images(run, together, student), c.iterations,
                     rows=whole.batch_size)  # fmt: skip
    _enter(run, "real_data", trained(student, real), sizes, together)
    for name, rate in (("dfka", whole.generator_rate), ("dfka_control", 0.0)):
        settings = dataclasses.replace(whole, generator_rate=rate)
        state = run.stage(
            "distillation", f"{name}/duel", dfka(teachers, student, settings), c.iterations,
            rows=settings.batch_size, draws_as="dfka/duel",
        )  # fmt: skip
        images = made_images(run, teachers[0], state, settings)
        run.keep(name, images, jnp.argmax(_joined(together, images), -1))
        _enter(run, name, student_of(student, state), sizes, together)


def _on_real_images(run: Run[DFKARecipeSettings], teachers: Teachers, student: Classifier) -> Method:
    """As many updates of the same student, by the same optimiser and loss, on the real images."""
    s, images = run.config.method, jnp.asarray(run.dataset.train.images)
    rule, loss = s.student_rule(run.config.iterations), each_head(Partial(response_kl))
    return training(student, images, None, loss=loss, optimizer=rule, batch_size=s.batch_size, teacher=teachers)


def _sizes(run: Run[DFKARecipeSettings]) -> tuple[int, ...]:
    """Classes of each teacher, as equal as can be."""
    classes, teachers = run.dataset.num_classes, run.config.teachers
    if 2 * teachers > classes:
        raise InputError(f"{teachers} teachers need at least {2 * teachers} classes, not {classes}")
    return tuple(len(part) for part in np.array_split(np.arange(classes), teachers))


def _teacher(run: Run[DFKARecipeSettings], index: int, start: int, size: int) -> Classifier:
    """A teacher of so many classes from `start` on."""
    c, train = run.config, run.dataset.train
    own = (train.labels >= start) & (train.labels < start + size)
    classifier = network(c.teacher, size, run.dataset.shape, c.fit)
    method = supervised_training(c, classifier, train.images[own], train.labels[own] - start)
    decides = [
        c.teacher, c.teacher_steps, c.teacher_batch, c.teacher_learning_rate, c.teacher_augmentation,
        c.teacher_training, c.fit, int(start), int(size),
    ]  # fmt: skip
    what = f"part{index}of{c.teachers}"
    return run.bench.cached(what, run.seed, classifier, method, c.teacher_steps, decides)


def joined(answers: dict[str, Array]) -> Array:
    """Answers of heads (B, K_t) side by side, (B, K), so that they compare: every head's logits with mean zero.

    A softmax does not change when all logits of its head grow by the same amount, so cross-entropy trains a teacher, and the
    divergence of answers a student, up to such an amount for each head and image; as they are they do not compare.
    """
    return jnp.concatenate([logits - logits.mean(-1, keepdims=True) for logits in answers.values()], -1)


def _joined(network: Teachers | Classifier, images: Array) -> Array:
    return joined(network(images))  # type: ignore[arg-type]


def _enter(
    run: Run[DFKARecipeSettings],
    name: str,
    network: Teachers | Classifier,
    sizes: tuple[int, ...],
    beside: Teachers | None,
) -> None:
    """Accuracy among all classes, and of each head among its own."""
    test = run.dataset.test
    with run.clock("evaluation"):
        logits = Answers(Partial(_joined, network)).predict(test.images)
        alike = None
        if beside is not None:
            theirs = Answers(Partial(_joined, beside)).predict(test.images)
            alike = round(100 * agreement(logits, theirs), 4)
    heads = np.split(logits, np.cumsum(sizes)[:-1], axis=1)
    found = [100 * share for share in task_accuracies(heads, test.labels, sizes)]
    metrics = {f"accuracy_task{i}": round(value, 4) for i, value in enumerate(found)}
    metrics["task_accuracy"] = round(float(np.mean(found)), 4)
    budget = run.bench.supervised_budget if name == "teacher" else None
    if name == "real_data":
        c = run.config
        rows = c.iterations * c.method.batch_size
        seen = {
            "teacher_rows": rows * c.teachers,
            "student_updates": c.iterations,
            "real_samples": len(run.dataset.train),
        }
        budget = {"synthetic_samples": 0, **seen}
    right = round(100 * accuracy(logits, test.labels), 4)
    balanced, series = run.by_class(logits)
    run.enter(name, metrics | balanced, accuracy=right, agreement=alike, budget=budget, series=series)


register(
    Recipe(
        name="dfka",
        title="DFKA: amalgamation of several teachers without data",
        summary="Teachers know some of the classes each; one generator makes images that every teacher is sure of and spreads "
        "over its classes, and a student with a head for each learns all answers. The control's generator never learns; "
        "another student takes as many steps on real images. Accuracy is among all classes, by logits of mean zero in every "
        "head; task_accuracy among those of a head.",
        paper="Ye, Ji, Wang, Gao, Song: Data-Free Knowledge Amalgamation via Group-Stack Dual-GAN, CVPR 2020",
        config=DFKARecipeSettings,
        arms=arms,
        measure=measure,
        labels=True,
        views=(SIDE_BY_SIDE,),
        presets={"digits": {**DIGITS, "iterations": 1000, "method": DFKASettings(**SMALL)}},
    )
)

__all__ = ["DFKARecipeSettings", "joined"]
