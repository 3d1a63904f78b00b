"""Generator against student: what the white-box methods with a generator share, the schedule of the
two players included.

A method is a *gain*, what the generator descends, and a `Schedule`. Both players see the teacher's
own answers; nothing is asked of real data. With a generator rate of 0 the generator stays as it was
drawn: the matched control.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.distillation.cost import Cost
from dfke_jax.nn.answers import class_metrics, each_head, heads, same_answers
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator, draw_latents
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import OPTIMISERS, OUTPUTS, SCHEDULES, Learner, Maker, scheduled
from dfke_jax.nn.training import Training, descend
from dfke_jax.nn.whitebox import WhiteBox

MODES = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Whose turn it is; hashable.

    Attributes:
      student: updates of the student per update of the generator, n_S.
      same_latents: the generator moves first, and all n_S updates of the student are on the images
        that it then makes of the same latents; the teacher answers them once. Otherwise the student
        moves first, on fresh latents every time.
      joint: one batch serves both: the student learns the images that the generator's step has just
        judged. Then n_S = 1.
      student_mode: of the student while the generator moves: ``train`` normalises by the batch,
        ``eval`` by running statistics. The student's running statistics are its own steps' alone.

    Raises:
      InputError: for schedules that contradict themselves.
    """

    student: int = 5
    same_latents: bool = False
    joint: bool = False
    student_mode: Literal["train", "eval"] = "train"

    def __post_init__(self):
        if self.student < 1:
            raise InputError(f"the student needs at least one update, got {self.student}")
        if self.joint and (self.student != 1 or self.same_latents):
            raise InputError(
                "a joint step is one batch and one update of the student, without same_latents"
            )
        if self.student_mode not in MODES:
            raise UnknownNameError("mode of the student", self.student_mode, MODES)


@dataclasses.dataclass(frozen=True)
class DuelSettings:
    """What every method with a generator must decide.

    Attributes:
      steps: iterations that the schedules of the rates span, each of one update of the generator.
      batch_size: B. latent, width: of the generator.
      student_optimizer, student_rate: ``sgd`` (with `momentum` and `weight_decay`) or ``adam``
        (without them).
      generator_optimizer, generator_rate: the same; a rate of 0 is the control.
      schedule, drops, drop_factor: of both rates, see `dfke_jax.nn.players.scheduled`.
      clip: largest norm of either player's gradient; 0 for any.
      output: what of the generator the networks see, see `dfke_jax.nn.players.Maker`: ``box`` keeps
        to pictures, the others presume the normalisation of the data and leave the box.
      normalised_output: whether the generator's last layer is normalised over the batch, see
        `DFMEGenerator`.

    Raises:
      InputError, UnknownNameError: for values that mean nothing.
    """

    steps: int = 0
    batch_size: int = 256
    latent: int = 100
    width: int = 64
    student_optimizer: str = "adam"
    student_rate: float = 2e-3
    generator_optimizer: str = "adam"
    generator_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    drops: tuple[float, ...] = ()
    drop_factor: float = 0.1
    clip: float = 0.0
    output: Literal["box", "normalised_tanh", "normalised"] = "box"
    normalised_output: bool = True

    def __post_init__(self):
        for name in ("batch_size", "latent", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.student_rate > 0 or not self.drop_factor > 0:
            raise InputError(
                f"student_rate and drop_factor must be positive, got {self.student_rate} and "
                f"{self.drop_factor}"
            )
        if (
            not 0 <= self.momentum < 1
            or not min(self.generator_rate, self.steps, self.weight_decay, self.clip) >= 0
        ):
            raise InputError(
                "generator_rate, steps, weight_decay and clip must not be negative and momentum "
                f"must lie in [0, 1), got {self.generator_rate}, {self.steps}, "
                f"{self.weight_decay}, {self.clip} and {self.momentum}"
            )
        if list(self.drops) != sorted(self.drops) or not all(0 < drop < 1 for drop in self.drops):
            raise InputError(
                f"drops must be increasing fractions of the steps in (0, 1), got {self.drops}"
            )
        for what, name, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimiser", self.student_optimizer, OPTIMISERS),
            ("optimiser", self.generator_optimizer, OPTIMISERS),
            ("output of a generator", self.output, OUTPUTS),
        ):
            if name not in known:
                raise UnknownNameError(what, name, known)

    def student_rule(self, updates: int) -> optax.GradientTransformation:
        """The student's optimiser, its schedule over so many updates."""
        return self._rule(self.student_optimizer, self.student_rate, updates)

    def generator_rule(self, updates: int) -> optax.GradientTransformation:
        """The generator's."""
        return self._rule(self.generator_optimizer, self.generator_rate, updates)

    def _rule(self, name: str, rate: float, updates: int) -> optax.GradientTransformation:
        return scheduled(
            name,
            rate,
            updates,
            self.schedule,
            self.drops,
            self.drop_factor,
            self.momentum,
            self.weight_decay,
            self.clip,
        )


class Seen(NamedTuple):
    """What a gain may read of one batch; everything is differentiable with respect to the images.

    Attributes:
      images: (B, H, W, C). teacher, student: what each network shows of them.
    """

    images: Array
    teacher: Observed
    student: Observed


Gain = Callable[[Seen], tuple[Array, Metrics]]
"""What the generator descends, () and metrics beside it; a `jax.tree_util.Partial`."""

StudentLoss = Callable[[Observed, Observed], Array]
"""(student, teacher) -> (B,); a `Partial`."""


class DuelState(NamedTuple):
    """State of a duel: variables and optimiser states of both players."""

    student: Training
    generator: Training


@dataclasses.dataclass(frozen=True)
class _Fixed:
    learner: Learner
    maker: Maker
    schedule: Schedule
    batch_size: int
    activations: bool
    moments: bool


def duel(
    teacher: WhiteBox,
    student: Classifier,
    settings: DuelSettings,
    schedule: Schedule,
    gain: Gain,
    student_loss: StudentLoss,
    *,
    activations: bool = False,
    moments: bool = False,
    generator: nn.Module | None = None,
) -> Method:
    """A method in which a generator makes what a student learns of its teacher.

    Args:
      teacher: frozen; its answers may have several heads (see `dfke_jax.nn.answers`), which gain
        and loss then take.
      student: gives the network, with the same answers; parameters are drawn afresh.
      settings: see `DuelSettings`; schedules over steps need ``settings.steps``.
      schedule: see `Schedule`.
      gain: what the generator descends. student_loss: of the student's updates.
      activations: whether either reads hidden layers. moments: whether the gain reads the
        teacher's.
      generator: a module of one's own, with an attribute ``latent``, Z, called on latents (B, Z)
        and with a method ``pre_activation(z, *, train)`` -> x̃ (B, H, W, C); by default
        `DFMEGenerator` of the settings' width and latent.

    Returns:
      A `Method` over `DuelState` with metrics ``student_loss``, ``generator_loss``, those of
      `dfke_jax.nn.answers.class_metrics` for what the teacher answers to the generator's batch (a
      ``class_entropy`` near 0 and a ``largest_share`` of 1 say that the generator has collapsed,
      and `dfke_jax.core.run` says so too) and the gain's own.

    Raises:
      InputError: teacher and student of other answers or images.
    """
    check_pair(teacher, student)
    s = settings
    learner = Learner.of(student, s.student_rule(s.steps * schedule.student))
    own: Any = generator  # `Maker` calls no more of it than is said above
    maker = Maker(
        own or DFMEGenerator(teacher.input_shape, s.width, s.latent, s.normalised_output),
        teacher.preprocessing,
        s.generator_rule(s.steps),
        s.output,
    )
    fixed = Static(_Fixed(learner, maker, schedule, s.batch_size, activations, moments))
    return method(_init, _step, fixed, teacher, gain, student_loss)


def check_pair(teacher: WhiteBox, student: Classifier) -> None:
    """Raises `InputError` unless both networks take the same images and give the same answers."""
    shapes = [answered(network) for network in (teacher, student)]
    if same_answers(*shapes) and teacher.input_shape == student.input_shape:
        return
    theirs, ours = (
        " and ".join(
            f"{head.shape[-1]} classes" + f" ({name})" * bool(name)
            for name, head in heads(shape).items()
        )
        for shape in shapes
    )
    raise InputError(
        f"teacher and student must agree on classes and images; the teacher has {theirs} of "
        f"{teacher.input_shape}, the student {ours} of {student.input_shape}"
    )


def answered(network: WhiteBox) -> PyTree:
    """Shapes of the answers to two images; nothing is computed."""
    images = jax.ShapeDtypeStruct((2, *network.input_shape), jnp.float32)
    return jax.eval_shape(network.observe, images).logits


SAMPLES_A_CLASS = 10
"""Below so many images a class the entropy of a batch's mean answer is mostly noise: over random
labels its bias, (K − 1)/2B nats, is 0.05 there. DAFL's published settings have more."""


def warn_of_small_batches(method_name: str, batch_size: int, teacher: WhiteBox) -> None:
    """Warns where the mean answer of a batch is of less than `SAMPLES_A_CLASS` images a class."""
    most = max(head.shape[-1] for head in heads(answered(teacher)).values())
    if batch_size < SAMPLES_A_CLASS * most:
        warnings.warn(
            f"{method_name} balances the mean answer over a batch, and {batch_size} images for {most} "
            f"classes are few: that mean is noise. Take at least {SAMPLES_A_CLASS * most}, or find "
            "all weights again (gradients of several small batches together do not help)",
            stacklevel=3,
        )


def answers_kl(student: Observed, teacher: Observed) -> Array:
    """KL(p_T ‖ p_S) of every image, (B,), summed over heads: what most of these students descend."""
    return each_head(Partial(response_kl))(student.logits, teacher.logits)


def duel_cost(settings: DuelSettings, schedule: Schedule) -> Cost:
    """What one iteration costs, in images that pass through a network."""
    batch, updates = settings.batch_size, schedule.student
    fresh = 0 if schedule.joint else batch * (1 if schedule.same_latents else updates)
    return Cost(
        samples=batch + (0 if schedule.same_latents else fresh),
        teacher_forward=batch + fresh,
        teacher_backward=batch,
        student_updates=updates,
        generator_updates=1,
    )


def _init(fixed: Static, teacher: WhiteBox, gain: Gain, loss: StudentLoss, key: Key) -> DuelState:
    of: _Fixed = fixed.value
    student_key, generator_key = jax.random.split(key)
    return DuelState(of.learner.new(student_key), of.maker.new(generator_key))


def _step(
    fixed: Static, teacher: WhiteBox, gain: Gain, loss: StudentLoss, key: Key, state: DuelState
) -> tuple[DuelState, Metrics]:
    of: _Fixed = fixed.value
    schedule, size = of.schedule, of.batch_size
    latent_key, fresh_key, learn_key = jax.random.split(key, 3)
    z = draw_latents(latent_key, (size,), of.maker.generator)

    if schedule.joint:
        generator, images, answers, metrics = _generator_step(
            of, teacher, gain, state, z, learn_key
        )
        student, learnt = of.learner.learn(
            learn_key, state.student, images, answers, loss, activations=of.activations
        )
    elif schedule.same_latents:
        generator, _, _, metrics = _generator_step(of, teacher, gain, state, z, learn_key)
        images, _ = of.maker.images(generator.variables, z)
        answers = _answers(of, teacher, images)
        again = lambda leaf: jnp.broadcast_to(leaf, (schedule.student, *leaf.shape))
        student, learnt = of.learner.learn_all(
            learn_key,
            state.student,
            again(images),
            jax.tree.map(again, answers),
            loss,
            activations=of.activations,
        )
    else:

        def learn(student: Training, i: Array) -> tuple[Training, Array]:
            fresh = draw_latents(jax.random.fold_in(fresh_key, i), (size,), of.maker.generator)
            images, _ = of.maker.images(state.generator.variables, fresh)
            answers, key = _answers(of, teacher, images), jax.random.fold_in(learn_key, i)
            return of.learner.learn(key, student, images, answers, loss, activations=of.activations)

        student, losses = jax.lax.scan(learn, state.student, jnp.arange(schedule.student))
        learnt = jnp.mean(losses)
        generator, _, _, metrics = _generator_step(
            of, teacher, gain, state._replace(student=student), z, learn_key
        )
    return DuelState(student, generator), {"student_loss": learnt, **metrics}


def _answers(of: _Fixed, teacher: WhiteBox, images: Array) -> Observed:
    """What the teacher shows of images that are given."""
    images = jax.lax.stop_gradient(images)
    seen = teacher.observe(images, activations=of.activations)
    return jax.lax.stop_gradient(seen)


def _generator_step(
    of: _Fixed, teacher: WhiteBox, gain: Gain, state: DuelState, z: Array, key: Key
) -> tuple[Training, Array, Observed, Metrics]:
    """The generator after its update, its images before it, what the teacher shows of them, and
    metrics.
    """
    train = of.schedule.student_mode == "train"

    def objective(params: PyTree) -> tuple[Array, tuple[Any, PyTree]]:
        images, statistics = of.maker.images({**state.generator.variables, "params": params}, z)
        shown = teacher.observe(images, activations=of.activations, moments=of.moments)
        own = of.learner.observe(
            state.student.variables, images, train=train, activations=of.activations,
            key=jax.random.fold_in(key, 0) if train else None,
        )  # fmt: skip
        value, metrics = gain(Seen(images, shown, own._replace(updated={})))
        return value, ((images, shown, metrics), statistics)

    generator, value, (images, shown, metrics) = descend(
        of.maker.optimizer, state.generator, objective
    )
    images, shown = jax.lax.stop_gradient((images, shown._replace(moments=())))
    return (
        generator,
        images,
        shown,
        {"generator_loss": value, **class_metrics(shown.logits), **metrics},
    )


def student_of(classifier: Classifier, state: DuelState) -> Classifier:
    """The student that a duel's state holds.

    Args:
      classifier: as given to the method. state: of the method.
    """
    return dataclasses.replace(classifier, variables=state.student.variables)


__all__ = [
    "DuelSettings",
    "DuelState",
    "Gain",
    "Schedule",
    "Seen",
    "answered",
    "answers_kl",
    "check_pair",
    "duel",
    "duel_cost",
    "student_of",
    "warn_of_small_batches",
]
