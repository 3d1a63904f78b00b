"""Black-box extraction with generators: what a clone learns from answers to images that nobody took."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Method, against
from dfke_jax.evaluation import fgsm, total_variation, transfer_rate
from dfke_jax.experiments.anchors import DIGITS
from dfke_jax.experiments.registry import Recipe, register
from dfke_jax.experiments.result import Arm, Published
from dfke_jax.experiments.settings import Settings
from dfke_jax.experiments.workbench import Answers, Workbench
from dfke_jax.extraction import (
    SMALL_DFME,
    SMALL_DISGUIDE,
    DFMESettings,
    DFMSSettings,
    DisagreementSettings,
    GenerativeSettings,
    MEGEXSettings,
    adversarial_pretraining,
    clone_of,
    dfme,
    dfms,
    disagreement,
    megex,
    vote,
)
from dfke_jax.extraction.common import SMALL
from dfke_jax.extraction.dfme import check_differences
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator, draw_latents
from dfke_jax.oracle import Ledger, Reveal, check_spent, explanation_oracle, oracle_for, rows_per_step
from dfke_jax.synthesis.pool import Pool
from dfke_jax.synthesis.shapes import synthetic_shapes


@dataclasses.dataclass(frozen=True)
class ExtractionSettings(Settings):
    """What all extraction recipes have in common."""

    student: str = "lenet5"
    """Network of the clone."""
    budgets: tuple[int, ...] = (10_000, 20_000, 50_000, 100_000)
    """Rows that may be asked; one attack is run from the beginning for each."""
    reveal: Literal["logits", "probabilities", "label"] = "probabilities"
    """What the victim's endpoint answers."""
    decimals: int | None = None
    """To how many decimals answers are rounded; None for none."""
    control: bool = True
    """Whether the attack is run with a generator that never learns as well."""
    transfer_epsilon: float = 0.2
    """FGSM step of the adversarial examples that are crafted on the clone and tried on the victim, in pixel units."""
    attack: GenerativeSettings = GenerativeSettings()
    """How the attack runs."""

    def __post_init__(self):
        super().__post_init__()
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
            raise InputError(f"budgets must be increasing and at least one, got {self.budgets}")
        for budget in self.budgets:
            self.attack.with_budget(budget)
        _ = self.answers

    @property
    def answers(self) -> Reveal:
        """What is revealed."""
        return Reveal(self.reveal, decimals=self.decimals)


@dataclasses.dataclass(frozen=True)
class DFMERecipeSettings(ExtractionSettings):
    """Settings of data-free model extraction."""

    attack: DFMESettings = SMALL_DFME
    """How the attack runs; replay_batches=0 is the published algorithm."""

    def __post_init__(self):
        super().__post_init__()
        check_differences(self.answers, "DFME")


@dataclasses.dataclass(frozen=True)
class MEGEXRecipeSettings(ExtractionSettings):
    """Settings of MEGEX."""

    attack: MEGEXSettings = MEGEXSettings(**SMALL)
    """How the attack runs."""

    def __post_init__(self):
        super().__post_init__()
        if self.answers != Reveal():
            raise InputError(
                "MEGEX reads probabilities, unrounded, and their explanations; leave reveal and decimals alone"
            )


@dataclasses.dataclass(frozen=True)
class DisagreementRecipeSettings(ExtractionSettings):
    """Settings of attacks by disagreeing clones."""

    attack: DisagreementSettings = SMALL_DISGUIDE
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class DFMSRecipeSettings(ExtractionSettings):
    """Settings of DFMS."""

    reveal: Literal["logits", "probabilities", "label"] = "label"
    """What the victim's endpoint answers."""
    budgets: tuple[int, ...] = (50_000, 200_000)
    """Rows that may be asked; one attack is run from the beginning for each."""
    shapes: int = 10_000
    """Synthetic images of shapes that stand for the proxy data."""
    pretraining_steps: int = 1000
    """Steps of the generative adversarial network on them before anything is asked."""
    attack: DFMSSettings = DFMSSettings(**{**SMALL, "batch_size": 64})
    """How the attack runs."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What one attack is made of.

    Attributes:
      name: of its arms. label: in figures. formula: its name and sizes for `rows_per_step`.
      make: (config, attack settings, clone, bench, seed) -> `Attack`. explains: whether the endpoint explains.
      read: (clone, state) -> what answers for the clone. generator: of its images.
    """

    name: str
    label: str
    formula: Callable[[Any], int]
    make: Callable[[Any, Any, Classifier, Workbench, int], Attack]
    explains: bool = False
    read: Callable[[Classifier, Any], Any] = clone_of
    generator: type[DFMEGenerator] | type[DCGANGenerator] = DFMEGenerator


def execute(kind: _Kind, config: ExtractionSettings, bench: Workbench) -> list[Arm]:
    """The victim, an independent one, and per budget the attack and its control."""
    arms = bench.anchors(real=False)
    arms[0].label = f"Victim ({config.teacher})"
    other = Arm("independent", "Another victim, trained independently", "anchor", budget=arms[0].budget)
    for seed in bench.seeds:
        bench.record(other, bench.teacher(seed + config.seeds), bench.teacher(seed))
    arms.append(other)
    for budget in config.budgets:
        arms += _at_budget(kind, config, bench, budget)
    return arms


def _at_budget(kind: _Kind, config: ExtractionSettings, bench: Workbench, budget: int) -> list[Arm]:
    settings = config.attack.with_budget(budget)
    rows, steps = settings.rows_per_step, settings.steps
    name = f"{kind.name}_{budget}"
    made = [Arm(name, f"{kind.label}, {budget:,} queries", "method")]
    if config.control:
        made.append(Arm(f"{name}_control", f"Generator that never learns, {budget:,}", "control"))
    for seed in bench.seeds:
        victim, clone = bench.teacher(seed), bench.network(config.student)
        oracle = (
            explanation_oracle(victim, reveal=config.answers) if kind.explains else oracle_for(victim, config.answers)
        )
        for arm in made:
            how = dataclasses.replace(settings, generator_rate=0.0) if arm.role == "control" else settings
            attack = kind.make(config, how, clone, bench, seed)
            fused = against(attack, oracle)
            assert isinstance(fused, Method)
            with Ledger(budget=budget) as ledger:
                ledger.reserve(steps * rows)
                state = bench.stage(
                    "extraction",
                    f"{arm.name}/attack",
                    seed,
                    fused,
                    steps,
                    rows=rows,
                    draws_as=f"{name}/attack",
                )
                ledger.charge(steps * rows)
                check_spent(ledger, steps * kind.formula(settings))
                asked = ledger.counts()["rows"] or 0
            arm.budget = {"victim_rows": asked, "steps": steps, "clone_updates": _updates(settings) * steps}
            if kind.explains:
                arm.budget["explanation_rows"] = asked
            learnt = kind.read(clone, state)
            bench.record(arm, learnt, victim, **_closeness(config, bench, learnt, victim))
            _keep_pictures(kind, bench, settings, state, learnt, arm.name, seed)
    return made


def _keep_pictures(
    kind: _Kind, bench: Workbench, settings: GenerativeSettings, state: Any, clone: Any, name: str, seed: int
) -> None:
    """A look at what the generator makes in the end, by the class that the clone sees in it."""
    generator = kind.generator(bench.dataset.shape, settings.width, settings.latent)
    z = draw_latents(bench.key(seed, "pictures"), (500,), generator)
    images = jax.jit(generator.apply)(state.generator.variables, z)
    labels = jnp.argmax(jnp.asarray(clone.predict(np.asarray(images))), -1)
    bench.keep(name, Pool(images, labels, jnp.int32(500), ()), seed)


def _updates(settings: GenerativeSettings) -> int:
    return settings.clone_batches + settings.extra_clone_updates


def _closeness(config: ExtractionSettings, bench: Workbench, clone: Any, victim: Classifier) -> dict[str, float]:
    """Total variation on the test set, and how often FGSM on the clone deceives the victim (1,000 test images)."""
    test = bench.dataset.test
    images, labels = as_float(jnp.asarray(test.images[:1000])), test.labels[:1000]
    attacked = fgsm(getattr(clone, "answer", clone), images, jnp.asarray(labels), config.transfer_epsilon)
    moved = transfer_rate(victim.predict(np.asarray(images)), victim.predict(np.asarray(attacked)), labels)
    far = total_variation(victim.predict(test.images), clone.predict(test.images))
    return {"total_variation": far, "transfer": 100 * moved["rate"]}


def _sizes(settings: Any) -> dict[str, int]:
    return {"batch": settings.batch_size, "clone_steps": settings.clone_batches}


def _dfme(config: Any, settings: Any, clone: Classifier, bench: Workbench, seed: int) -> Attack:
    return dfme(clone, settings, config.answers, bench.dataset.num_classes)


def _megex(config: Any, settings: Any, clone: Classifier, bench: Workbench, seed: int) -> Attack:
    return megex(clone, settings, bench.dataset.num_classes)


def _disagreement(config: Any, settings: Any, clone: Classifier, bench: Workbench, seed: int) -> Attack:
    return disagreement(clone, settings, config.answers, bench.dataset.num_classes)


def _dfms(config: Any, settings: Any, clone: Classifier, bench: Workbench, seed: int) -> Attack:
    images = synthetic_shapes(bench.key(seed, "shapes"), config.shapes, bench.dataset.shape)
    begun = bench.stage(
        "synthesis",
        "pretraining",
        seed,
        adversarial_pretraining(images, config.attack),
        config.pretraining_steps,
        rows=settings.batch_size,
    )
    return dfms(clone, images, settings, config.answers, bench.dataset.num_classes, start=begun)


_DFME = _Kind(
    "dfme",
    "DFME",
    lambda s: rows_per_step("dfme", **_sizes(s), generator_steps=1, directions=s.differences.rows_per_sample - 1),
    _dfme,
)
_MEGEX = _Kind("megex", "MEGEX", lambda s: rows_per_step("megex", **_sizes(s), generator_steps=1), _megex, True)
_DISGUIDE = _Kind("disguide", "DisGUIDE", lambda s: rows_per_step("disguide", **_sizes(s)), _disagreement, read=lambda c, s: Answers(vote(c, s)))  # fmt: skip
_DUAL = dataclasses.replace(_DISGUIDE, name="dual_students", label="Dual Students")
_DFMS = _Kind("dfms", "DFMS", lambda s: rows_per_step("dfms", **_sizes(s)), _dfms, generator=DCGANGenerator)

_DIGITS = {**DIGITS, "budgets": (2_000, 10_000)}
_RERUN = "independent re-run of the attack on MNIST with LeNet (caumin/model-extraction-benchmark)"


def _register(kind: _Kind, name: str, title: str, summary: str, paper: str, config: type, **options: Any) -> None:
    register(
        Recipe(
            name=name,
            title=title,
            summary=summary,
            paper=paper,
            config=config,
            execute=lambda config, bench: execute(kind, config, bench),
            presets={"digits": _DIGITS},
            **options,
        )
    )


_register(
    _DFME,
    "dfme",
    "Data-free model extraction (DFME)",
    "A generator climbs the disagreement of clone and victim along differences of the victim's answers; the clone learns "
    "the answers, old ones many times. The control's generator never learns.",
    "Truong, Maini, Walls, Papernot: Data-Free Model Extraction, CVPR 2021",
    DFMERecipeSettings,
    published=tuple(
        Published(f"dfme_{budget}", "mnist", value, _RERUN, "table")
        for budget, value in ((10_000, 63.4), (20_000, 72.7), (50_000, 83.4), (100_000, 89.3))
    ),
)
_register(
    _MEGEX,
    "megex",
    "MEGEX: extraction with explanations",
    "As DFME, from an endpoint that explains its answers by input gradients, which take the place of differences.",
    "Miura, Hasegawa, Shibahara: MEGEX, 2021",
    MEGEXRecipeSettings,
)
_register(
    _DISGUIDE,
    "disguide",
    "DisGUIDE: disagreement of two clones",
    "Two clones learn the answers and a generator looks for images on which they disagree, without asking the victim.",
    "Rosenthal, Enouen, Pham, Tan: DisGUIDE, AAAI 2023",
    DisagreementRecipeSettings,
)
_register(
    _DUAL,
    "dual-students",
    "Dual Students",
    "As DisGUIDE, with the difference of the clones' logits in the place of the deviation of their probabilities.",
    "Beetham, Kardan, Mian, Shah: Dual Student Networks for Data-Free Model Stealing, ICLR 2023",
    dataclasses.make_dataclass(
        "DualStudentsRecipeSettings",
        [
            (
                "attack",
                DisagreementSettings,
                dataclasses.replace(SMALL_DISGUIDE, objective="l1", diversity=0.0),
            )
        ],
        bases=(DisagreementRecipeSettings,),
        frozen=True,
    ),
)
_register(
    _DFMS,
    "dfms",
    "DFMS: stealing from hard labels",
    "A GAN trained on synthetic shapes asks for labels; its generator is pushed towards all of the clone's classes. With "
    "other answers than labels it is DFMS-SL.",
    "Sanyal, Addepalli, Babu: Towards Data-Free Model Stealing in a Hard Label Setting, CVPR 2022",
    DFMSRecipeSettings,
)

__all__ = [
    "DFMERecipeSettings",
    "DFMSRecipeSettings",
    "DisagreementRecipeSettings",
    "ExtractionSettings",
    "MEGEXRecipeSettings",
    "execute",
]
