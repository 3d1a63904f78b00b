"""Rounds of inversion into a bank: what methods share whose student learns from a ring of images.

A method is how one batch is made. Every round makes a few, puts them into the ring, and lets the
student take its steps on draws of the ring, augmented and answered by the teacher. With ``steps=0``
nothing is optimised: the control learns from what untrained generators make, for the same number of
images, student steps and answers.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method, as_method, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import answered, check_pair
from dfke_jax.nn.answers import check_one_label, class_metrics, each_head
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import OPTIMISERS, SCHEDULES, Learner, scheduled
from dfke_jax.nn.training import Training
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.priors import StatisticsForm
from dfke_jax.synthesis.replay import Replay, empty_replay, recall, remember


@dataclasses.dataclass(frozen=True)
class BankSettings:
    """What every method with a bank must decide.

    Attributes:
      rounds: that the student's schedule spans and the bank has room for, those of the warm-up
        among them.
      batch_size: B, images that are inverted together. batches: of them a round.
      capacity: of the bank, in images; 0 for all that `rounds` make. The oldest give way.
      warm_up: rounds before the student's first step; until then the adversarial term is off, too.
      steps: updates of latents and generator per batch; 0 is the control.
      latent, width: of the generator. generator_rate: of its Adam (β = 0.5, 0.999).
      statistics, one_hot, adversarial: weights of the terms of an inversion, see `inversion_loss`.
        form: of the first.
      student_steps: n_S a round. student_batch: of each. temperature: τ of what the student learns.
      student_optimizer, student_rate, momentum, weight_decay, schedule, drops, drop_factor: of the
        student, see `dfke_jax.nn.players.scheduled`.

    Raises:
      InputError, UnknownNameError: for values that mean nothing.
    """

    rounds: int = 0
    batch_size: int = 256
    batches: int = 1
    capacity: int = 0
    warm_up: int = 0
    steps: int = 200
    latent: int = 256
    width: int = 64
    generator_rate: float = 1e-3
    statistics: float = 1.0
    one_hot: float = 1.0
    adversarial: float = 0.5
    form: StatisticsForm = "norm"
    student_steps: int = 400
    student_batch: int = 256
    temperature: float = 20.0
    student_optimizer: str = "sgd"
    student_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    drops: tuple[float, ...] = ()
    drop_factor: float = 0.1

    def __post_init__(self):
        for name in ("batch_size", "batches", "latent", "width", "student_steps", "student_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "rounds",
            "capacity",
            "warm_up",
            "steps",
            "statistics",
            "one_hot",
            "adversarial",
            "weight_decay",
        ):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("generator_rate", "student_rate", "temperature", "drop_factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must lie in [0, 1), got {self.momentum}")
        for what, name, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimiser", self.student_optimizer, OPTIMISERS),
        ):
            if name not in known:
                raise UnknownNameError(what, name, known)
        if self.rounds and self.warm_up >= self.rounds:
            raise InputError(
                f"a warm-up of {self.warm_up} leaves the student none of {self.rounds} rounds"
            )

    @property
    def room(self) -> int:
        """Images that the bank holds."""
        return self.capacity or self.rounds * self.batches * self.batch_size


class Made(NamedTuple):
    """One batch of a method.

    Attributes:
      images: (B, H, W, C) in the box. labels: (B,) int32, what each was meant for.
      carried: to the next batch. metrics: scalars.
    """

    images: Array
    labels: Array
    carried: PyTree
    metrics: Metrics


class Inverter(Protocol):
    """How a method makes its batches; a `dfke_jax.core.record`."""

    def begin(self, key: Key, teacher: WhiteBox) -> PyTree:
        """What is carried to the first batch."""
        ...

    def make(
        self, key: Key, teacher: WhiteBox, student: Classifier, number: Array, carried: PyTree
    ) -> Made:
        """One batch, given the student as it is, the round's number () and what was carried."""
        ...


class BankState(NamedTuple):
    """The student, the bank, what the method carries, and how many rounds there were."""

    student: Training
    bank: Replay
    carried: PyTree
    number: Array


def bank_method(
    teacher: WhiteBox,
    student: Classifier,
    settings: BankSettings,
    inverter: Inverter,
    augment: Augmentation | None = None,
) -> Method:
    """A method of rounds: batches into the bank, then steps of the student on draws of it.

    Args:
      teacher: frozen. student: gives the network; parameters are drawn afresh.
      settings: see `BankSettings`.
      inverter: how a batch is made.
      augment: of the images that the student draws; the teacher answers them as they are then.

    Returns:
      A `Method` over `BankState` with metrics ``student_loss`` (0 in the warm-up), those of
      `dfke_jax.nn.answers.class_metrics` for the teacher's answers to the round's last batch,
      ``meant_share``, the share of it that the teacher puts into the class it was made for, and the
      method's own.

    Raises:
      InputError: teacher and student of other answers or images, answers that are not one label an
        image, a bank smaller than a batch or without a size, a bare function as augmentation.
    """
    check_pair(teacher, student)
    check_one_label(answered(teacher), "an inverted image")
    check_arguments(augment, "augment")
    if settings.room < settings.batch_size:
        raise InputError(
            f"the bank has room for {settings.room} images, and a batch has {settings.batch_size}; "
            "set rounds or capacity"
        )
    s = settings
    steps = (s.rounds - s.warm_up) * s.student_steps
    rule = scheduled(
        s.student_optimizer,
        s.student_rate,
        steps,
        s.schedule,
        s.drops,
        s.drop_factor,
        s.momentum,
        s.weight_decay,
    )
    learner = Learner.of(student, rule)
    return as_method(
        _Bank(
            teacher=teacher, inverter=inverter, augment=augment, learner=learner, settings=settings
        )
    )


def bank_budget(settings: BankSettings, rounds: int, passes: int = 1) -> dict[str, int]:
    """What so many rounds cost, for an arm's row.

    Args:
      passes: of the teacher per update of an inversion: 2 where it looks at two views.
    """
    images = rounds * settings.batches * settings.batch_size
    learnt = max(rounds - settings.warm_up, 0) * settings.student_steps
    inverted = passes * settings.steps * images
    return Cost(
        samples=images,
        teacher_forward=inverted + images + learnt * settings.student_batch,
        teacher_backward=inverted,
        student_updates=learnt,
        generator_updates=rounds * settings.batches * settings.steps,
    ).times(1)


def student_in(classifier: Classifier, state: BankState) -> Classifier:
    """The student that a bank method's state holds; `classifier` as given to the method."""
    return dataclasses.replace(classifier, variables=state.student.variables)


@record
class _Bank:
    teacher: WhiteBox
    inverter: Inverter
    augment: Augmentation | None
    learner: Learner = static_field()
    settings: BankSettings = static_field()

    def init(self, key: Key) -> BankState:
        student_key, first_key = jax.random.split(key)
        bank = empty_replay(self.settings.room, self.teacher.input_shape, None)
        carried = self.inverter.begin(first_key, self.teacher)
        return BankState(self.learner.new(student_key), bank, carried, jnp.zeros((), jnp.int32))

    def step(self, key: Key, state: BankState) -> tuple[BankState, Metrics]:
        s, box = self.settings, self.teacher.preprocessing.box
        make_key, learn_key = jax.random.split(key)
        opponent = self.learner.classifier(state.student.variables)

        def batch(carry: tuple[Replay, PyTree], i: Array) -> tuple[tuple[Replay, PyTree], Metrics]:
            bank, carried = carry
            made = self.inverter.make(
                jax.random.fold_in(make_key, i), self.teacher, opponent, state.number, carried
            )
            bank = remember(bank, made.images, made.labels, box)
            answers = self.teacher(made.images)
            meant = jnp.mean((jnp.argmax(answers, -1) == made.labels).astype(jnp.float32))
            return (bank, made.carried), {
                **made.metrics,
                **class_metrics(answers),
                "meant_share": meant,
            }

        (bank, carried), metrics = jax.lax.scan(
            batch, (state.bank, state.carried), jnp.arange(s.batches)
        )
        learn = lambda student: self.learn(learn_key, student, bank)
        wait = lambda student: (student, jnp.zeros(()))
        student, loss = jax.lax.cond(state.number >= s.warm_up, learn, wait, state.student)
        last = jax.tree.map(lambda values: values[-1], metrics)
        return BankState(student, bank, carried, state.number + 1), {"student_loss": loss, **last}

    def learn(self, key: Key, student: Training, bank: Replay) -> tuple[Training, Array]:
        """The student after the steps of a round, and its mean loss."""
        s, teacher = self.settings, self.teacher
        loss = Partial(_response, s.temperature)

        def update(student: Training, i: Array) -> tuple[Training, Array]:
            draw_key, augment_key, network_key = jax.random.split(jax.random.fold_in(key, i), 3)
            images, _ = recall(draw_key, bank, (s.student_batch,), teacher.preprocessing.box)
            if self.augment is not None:
                images = self.augment(augment_key, images)
            return self.learner.learn(network_key, student, images, teacher.observe(images), loss)

        student, losses = jax.lax.scan(update, student, jnp.arange(s.student_steps))
        return student, jnp.mean(losses)


def _response(temperature: Array, student: Observed, teacher: Observed) -> Array:
    return each_head(Partial(response_kl, temperature=temperature))(student.logits, teacher.logits)


__all__ = [
    "BankSettings",
    "BankState",
    "Inverter",
    "Made",
    "bank_budget",
    "bank_method",
    "student_in",
]
