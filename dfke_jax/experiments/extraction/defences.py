"""Defences of an endpoint against attacks on it: what each costs the attacker, and what it costs everybody else."""

import dataclasses
import re
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import DIGITS
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.attacks import (
    AttackRecipe,
    AttackRun,
    CloneSettings,
    closeness,
    measure_victims,
    paid,
    victim_arms,
)
from dfke_jax.experiments.extraction.generative import DFME, DISGUIDE
from dfke_jax.experiments.extraction.pool import KNOCKOFF, SHAPES, ImagePool, image_pool
from dfke_jax.experiments.extraction.views import DEFENCES
from dfke_jax.extraction import (
    SMALL_CLONE,
    SMALL_DFME,
    SMALL_DISGUIDE,
    DFMESettings,
    DisagreementSettings,
    PoolAttackSettings,
)
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.oracle import (
    Oracle,
    Reveal,
    answered_probabilities,
    check_zeroth_order,
    defence,
    oracle_for,
    reverse_cross_entropy,
)

NONE, LABEL = "none", "label"
ATTACKS: dict[str, AttackRecipe] = {"knockoff": KNOCKOFF, "dfme": DFME, "disguide": DISGUIDE}


@dataclasses.dataclass(frozen=True)
class DefenceSettings(CloneSettings):
    """Settings of the table of defences."""

    budget: int = 10_000
    """Rows that every attack may ask."""
    defences: tuple[str, ...] = (
        NONE,
        "rounding:decimals=2",
        LABEL,
        "temperature:temperature=4",
        "gaussian_noise:scale=0.1",
        "reverse_sigmoid",
        "adaptive_misinformation:tau=0.9",
        "prediction_poisoning:epsilon=1.0",
    )
    """The rows: none, label (the largest class alone), or name:key=value,key=value as for an endpoint."""
    attacks: tuple[Literal["knockoff", "dfme", "disguide"], ...] = ("knockoff", "dfme", "disguide")
    """The columns."""
    pool_dataset: str = SHAPES
    """Data set whose training images Knockoff asks, or shapes for pictures of random shapes."""
    misinformation_steps: int = 500
    """Training steps of the model that gives wrong answers, for adaptive misinformation."""
    knockoff: PoolAttackSettings = PoolAttackSettings(
        rows_per_step=1000, clone=dataclasses.replace(SMALL_CLONE, steps=1000)
    )
    """How Knockoff runs."""
    dfme: DFMESettings = SMALL_DFME
    """How DFME runs."""
    disguide: DisagreementSettings = SMALL_DISGUIDE
    """How DisGUIDE runs."""

    def __post_init__(self):
        super().__post_init__()
        if self.misinformation_steps < 1:
            raise InputError(f"misinformation_steps must be at least 1, got {self.misinformation_steps}")
        if NONE not in self.defences or len(set(map(_slug, self.defences))) < len(self.defences):
            raise InputError(f"defences must be different and one of them {NONE!r}, got {self.defences}")
        for text in self.defences:
            if text not in (NONE, LABEL):
                defence(text, {"misinformation": Partial(_slug), "proxy": Partial(_slug)})
        for name in self.attacks:
            if name not in ATTACKS:
                raise UnknownNameError("attack", name, ATTACKS)
            getattr(self, name).with_budget(self.budget)
        if not self.attacks:
            raise InputError("attacks must be at least one")


def arms(config: DefenceSettings) -> list[Arm]:
    """The victim, an independent one, and every attack behind every defence; nothing defended is the control."""
    return [
        *victim_arms(config),
        *(_arm(attack, text) for text in config.defences for attack in _columns(config, text)),
    ]


def _columns(config: DefenceSettings, text: str) -> list[str]:
    """Attacks that can be made behind a defence: labels have no differences."""
    return [attack for attack in config.attacks if (attack, text) != ("dfme", LABEL)]


def prepare(bench: Workbench) -> ImagePool | None:
    """What Knockoff asks."""
    config: DefenceSettings = bench.config  # type: ignore[assignment]
    return image_pool(config, bench, config.budget) if "knockoff" in config.attacks else None


def measure(run: Run[DefenceSettings]) -> None:
    """Makes every attack behind every defence and measures the clones."""
    measure_victims(run)
    config, bench = run.config, run.bench
    for text in config.defences:
        oracle = _endpoint(run, text)
        costs = utility(oracle, run.teacher, bench)
        for attack in _columns(config, text):
            recipe, arm = ATTACKS[attack], _name(attack, text)
            if attack == "dfme" and run.first:
                _note_lost_differences(run, oracle, text)
            settings = getattr(config, attack).with_budget(config.budget)
            here = AttackRun(config, settings, oracle.reveal, run.network(config.student), bench, run.seed, run.shared)
            steps = recipe.steps(settings)
            state, counts = paid(
                recipe, here, recipe.attack(here), oracle, config.budget, arm, f"{attack}/attack", chunk=steps
            )
            learnt = recipe.read(here.clone, state)
            budget = {**counts, "steps": steps, "clone_updates": recipe.updates(settings)}
            run.record(arm, learnt, costs | closeness(run, learnt), budget=budget)


def _arm(attack: str, text: str) -> Arm:
    factors = {"attack": ATTACKS[attack].label, "defence": text.replace(":", ", ")}
    name, label, control = _name(attack, text), f"{factors['attack']} behind {factors['defence']}", _name(attack, NONE)
    if name == control:
        return Arm(name, label, "control", factors=factors)
    return Arm(name, label, "method", control=control, factors=factors)


def _name(attack: str, text: str) -> str:
    return f"{attack}_behind_{_slug(text)}"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text)


def _endpoint(run: Run[DefenceSettings], text: str) -> Oracle:
    """The victim behind one defence."""
    victim = run.teacher
    if text in (NONE, LABEL):
        oracle = oracle_for(victim, Reveal("label" if text == LABEL else "probabilities"))
    else:
        models = {}
        if text.startswith("adaptive_misinformation"):
            models["misinformation"] = misinformed(run)
        if text.startswith("prediction_poisoning"):
            clone = run.network(run.config.student)
            models["proxy"] = Classifier.create(clone.module, run.key("proxy"), clone.input_shape, clone.preprocessing)
        oracle = oracle_for(victim, Reveal(), [defence(text, models)])
    assert isinstance(oracle, Oracle)
    return oracle


def misinformed(run: Run[DefenceSettings]) -> Classifier:
    """A network of the victim's kind that has learnt not to give the right class (`reverse_cross_entropy`)."""
    config, (images, labels) = run.config, run.bench.train
    network = run.network(config.teacher)
    method = training(
        network,
        images,
        labels,
        loss=Partial(reverse_cross_entropy),
        optimizer=optimiser("adam", 1e-3),
        batch_size=config.teacher_batch,
    )
    return trained(network, run.stage("defence", "misinformation", method, config.misinformation_steps))


def utility(oracle: Oracle, victim: Classifier, bench: Workbench) -> dict[str, float]:
    """What a defence does to honest users, on the test set.

    Returns:
      ``answers_accuracy``: of the largest class answered, in per cent; ``answers_l1``: mean of Σ_k |p'_k − p_k|, between
      answers and the victim's probabilities (0 to 2; labels count as one-hot).
    """
    test = bench.dataset.test
    parts = [_distorted(oracle, victim, test.images[start : start + 500]) for start in range(0, len(test.images), 500)]
    given, far = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"answers_accuracy": 100 * accuracy(given, test.labels), "answers_l1": float(far.mean())}


@jax.jit
def _distorted(oracle: Oracle, victim: Classifier, images: Any) -> Any:
    rows = as_float(images)
    given = answered_probabilities(oracle(rows), oracle.reveal, oracle.num_classes)
    return given, jnp.abs(given - jax.nn.softmax(victim(rows))).sum(-1)


def _note_lost_differences(run: Run[DefenceSettings], oracle: Oracle, text: str) -> None:
    """Says in the result where DFME's differences cannot be seen through a defence."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        check_zeroth_order(oracle, run.config.dfme.epsilon, int(np.prod(run.dataset.shape)))
    run.note(*(f"DFME behind {text}: {warning.message}." for warning in heard))


register(
    Recipe(
        name="defences",
        title="Defences of an endpoint against extraction",
        summary="Every attack behind every defence at one budget: what the clone reaches, how accurate the defended answers "
        "still are, and how far they are from the victim's. The control is the same attack on the endpoint without defence.",
        paper="Tramèr et al. 2016; Lee et al. 2018; Orekondy, Schiele, Fritz: Prediction Poisoning, ICLR 2020; Kariyappa, "
        "Qureshi: Adaptive Misinformation, CVPR 2020",
        config=DefenceSettings,
        arms=arms,
        measure=measure,
        prepare=prepare,
        presets={
            "digits": {
                **DIGITS,
                "budget": 1_000,
                "knockoff": PoolAttackSettings(rows_per_step=100, clone=dataclasses.replace(SMALL_CLONE, steps=1000)),
            },
            "mnist": {"pool_dataset": "digits", "seeds": 2},
            "fashion_mnist": {"pool_dataset": "mnist"},
        },
        views=(DEFENCES,),
    )
)

__all__ = ["LABEL", "NONE", "DefenceSettings", "misinformed", "utility"]
