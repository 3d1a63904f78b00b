"""What all extraction recipes share: their settings, and an attack with its control at every budget, counted to the row."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Method, against, answers_on_host
from dfke_jax.core.types import Array
from dfke_jax.data import Dataset
from dfke_jax.evaluation import accuracy, fgsm, total_variation, transfer_rate
from dfke_jax.experiments.bench.own import Victim, answers_freely
from dfke_jax.experiments.bench.result import Arm, Published, Series
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import StudentSettings, SupervisedSettings, own_model
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.extraction import clone_of
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.oracle import Ledger, Metered, Reveal, check_spent, oracle_for

PROGRESS = "progress.jsonl"


@dataclasses.dataclass(frozen=True)
class CloneSettings(StudentSettings, SupervisedSettings):
    """A clone of a victim, and how it is measured. The teacher is the victim, the student the clone."""

    student: str = "lenet5"
    """Network of the clone."""
    transfer_epsilon: float = 0.2
    """FGSM step of the adversarial examples that are crafted on the clone and tried on the victim, in pixel units."""


@dataclasses.dataclass(frozen=True)
class ExtractionSettings(CloneSettings):
    """What recipes of one attack at several budgets have in common."""

    own: ClassVar[Literal["network", "answers"] | None] = "answers"

    budgets: tuple[int, ...] = (10_000, 20_000, 50_000, 100_000)
    """Rows that may be asked; one attack is run from the beginning for each."""
    control: bool = True
    """Whether the attack's control is run as well."""
    points: int = 0
    """Points on the way at which the clone is measured on the test set, for a curve; nothing is chosen by them."""
    attack: Any = None
    """How the attack runs; every recipe has settings of its own."""

    @property
    def answers(self) -> Reveal:
        """What the endpoint reveals: probabilities."""
        return Reveal()

    def __post_init__(self):
        super().__post_init__()
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
            raise InputError(f"budgets must be increasing and at least one, got {self.budgets}")
        if self.points < 0:
            raise InputError(f"points must not be negative, got {self.points}")
        for budget in self.budgets:
            self.attack.with_budget(budget)


def check_points(config: ExtractionSettings, dataset: Dataset) -> None:
    """Raises `InputError` where clones are to be measured on the way and nothing can be; to be asked before any work."""
    if config.points and not dataset.labelled:
        raise InputError("points are of accuracy, which cannot be measured without labels")


@dataclasses.dataclass(frozen=True)
class EndpointSettings(ExtractionSettings):
    """The same of attacks that can do with several kinds of answers."""

    reveal: Literal["logits", "probabilities", "label"] = "probabilities"
    """What the victim's endpoint answers."""
    decimals: int | None = None
    """To how many decimals answers are rounded; None for none."""

    def __post_init__(self):
        super().__post_init__()
        _ = self.answers

    @property
    def answers(self) -> Reveal:
        """What is revealed."""
        return Reveal(self.reveal, decimals=self.decimals)


class AttackRun(NamedTuple):
    """Where an attack is made.

    Attributes:
      config: of the recipe. settings: of the attack, for its budget. answers: what the endpoint reveals. clone: gives the
      network. bench: the workbench. seed: of this run. material: what the recipe prepared for all its runs, such as a pool.
      opened: what `AttackRecipe.opening` returned.
      where: goes before the names of stages that depend on the victim, where a run has several victims of one seed.
    """

    config: Any
    settings: Any
    answers: Reveal
    clone: Classifier
    bench: Workbench
    seed: int
    material: Any = None
    opened: Any = None
    where: str = ""


def plain_oracle(victim: Any, config: "ExtractionSettings") -> Any:
    """The endpoint without defences; a `Victim` of the user's own as it is opened."""
    if isinstance(victim, Victim):
        remote = hasattr(victim.opened.victim, "request")
        return victim.opened.oracle(None if remote else config.answers)
    return oracle_for(victim, config.answers, input_shape=victim.input_shape, box=victim.preprocessing.box)


@dataclasses.dataclass(frozen=True)
class AttackRecipe:
    """What one attack is made of; its `arms` and `measure` are those of a `Recipe`.

    Attributes:
      name: of its arms. label: in figures.
      rows: settings -> rows that it asks in all, by its published formula. steps: settings -> its iterations.
      updates: settings -> updates of the clone in all, as far as they are fixed.
      attack: run -> `Attack`. control_label: what the control is: everything but the attack's own idea.
      without: run -> the control's run. control: run -> `Attack` of the control, where it is another one.
      pictures: (run, state, what answers for the clone) -> images that the attack asked, or would ask in the end.
      oracle: (victim, configuration) -> endpoint. explains: whether its rows count as explained.
      read: (clone, state) -> what answers for the clone.
      opening: (run, oracle) -> what is there before the attack begins, and updates of a clone that it took.
      opening_rows: configuration -> rows that `opening` asks, of the budget.
    """

    name: str
    label: str
    rows: Callable[[Any], int]
    steps: Callable[[Any], int]
    updates: Callable[[Any], int]
    attack: Callable[[AttackRun], Attack]
    control_label: str
    pictures: Callable[[AttackRun, Any, Any], Array]
    without: Callable[[AttackRun], AttackRun] = lambda run: run
    control: Callable[[AttackRun], Attack] | None = None
    oracle: Callable[[Classifier, Any], Any] = plain_oracle
    explains: bool = False
    read: Callable[[Classifier, Any], Any] = clone_of
    opening: Callable[[AttackRun, Any], tuple[Any, int]] | None = None
    opening_rows: Callable[[Any], int] = lambda config: 0

    def arms(self, config: ExtractionSettings) -> list[Arm]:
        """The victim, an independent one, and per budget the attack and its control."""
        made = victim_arms(config)
        for budget in config.budgets:
            name = f"{self.name}_{budget}"
            place = self.factors(budget)
            made.append(Arm(name, f"{self.label}, {budget:,} queries", "method", factors=place))
            if config.control:
                made.append(Arm(f"{name}_control", f"{self.control_label}, {budget:,}", "control", factors=place))
        return made

    def factors(self, budget: int) -> dict[str, str | int]:
        """Where this attack at a budget stands among the arms; see `Arm.factors`."""
        return {"attack": self.label, "queries": budget}

    def measure(self, run: Run[Any]) -> None:
        """Makes the attack and its control at every budget and measures the clones."""
        check_points(run.config, run.dataset)
        measure_victims(run)
        c, opening_rows = run.config, self.opening_rows(run.config)
        answers = getattr(plain_oracle(run.teacher, c), "reveal", c.answers)
        for budget in c.budgets:
            settings, name = c.attack.with_budget(budget - opening_rows), f"{self.name}_{budget}"
            plain = AttackRun(c, settings, answers, run.network(c.student), run.bench, run.seed, run.shared)
            sides = [(name, plain, self.attack)]
            if c.control:
                sides.append((f"{name}_control", self.without(plain), self.control or self.attack))
            for arm, here, make in sides:
                here, state, counts, updates = extracted(
                    self, here, make, run.teacher, budget, arm, f"{name}/attack", c.points
                )
                learnt = self.read(here.clone, state)
                way = {n + opening_rows: value for n, value in progress(run.bench, arm, run.seed).items()}
                run.record(
                    arm,
                    learnt,
                    closeness(run, learnt),
                    budget={**counts, "steps": self.steps(settings), "clone_updates": updates},
                    series=[Series.of_seed("accuracy", "queries", way)] if way else [],
                )
                images = self.pictures(here, state, learnt)
                run.keep(arm, images, jnp.argmax(jnp.asarray(learnt.predict(np.asarray(images))), -1))

    def published(self, budget: int, dataset: str, value: float, source: str, note: str = "") -> Published:
        """A figure of a table in the literature for this attack at a budget, whether we have an arm for it or not."""
        name = f"{self.name}_{budget}"
        return Published(name, dataset, value, source, "table", note, factors=self.factors(budget))

    def reruns(self, *figures: tuple[int, float], note: str = "") -> tuple[Published, ...]:
        """Figures of the small setting, (budget, per cent), for which the papers have none."""
        source = "independent re-run of the attack on MNIST with LeNet (caumin/model-extraction-benchmark)"
        return tuple(self.published(budget, "mnist", value, source, note) for budget, value in figures)


def victim_arms(config: CloneSettings) -> list[Arm]:
    """The victim, and another one that was trained independently: the fidelity that a perfect learner of the task has."""
    own = [Arm("teacher", f"Victim ({config.teacher})", "teacher")]
    if own_model(config.teacher):
        return own
    return [*own, Arm("independent", "Another victim, trained independently", "anchor")]


def measure_victims(run: Run[Any]) -> None:
    """Both of them, of one seed."""
    budget = run.bench.supervised_budget
    run.record_teacher()
    if "independent" in run.arms:
        run.record("independent", run.bench.teacher(run.seed + run.config.seeds), budget=budget)


def extracted(
    recipe: AttackRecipe,
    run: AttackRun,
    make: Callable[[AttackRun], Attack],
    victim: Classifier,
    budget: int,
    name: str,
    draws_as: str,
    points: int = 0,
) -> tuple[AttackRun, Any, dict[str, int], int]:
    """What comes before an attack, and the attack itself, `paid` from one budget.

    Args:
      run: with settings for the rows that the opening leaves. make: ``recipe.attack``, or the control's. victim: is asked as the
      recipe asks. budget: rows of both. name, draws_as, points: as for `paid`.

    Returns:
      The run as it was opened, the attack's last state, its counts and the updates of the clone, the opening's included.
    """
    oracle, updates = recipe.oracle(victim, run.config), recipe.updates(run.settings)
    opening_rows = recipe.opening_rows(run.config)
    if recipe.opening:
        opened, more = recipe.opening(run, oracle)
        run, updates = run._replace(opened=opened), updates + more
    state, counts = paid(recipe, run, make(run), oracle, budget - opening_rows, name, draws_as, points=points)
    counts["victim_rows"] += opening_rows
    return run, state, counts, updates


def paid(
    recipe: AttackRecipe,
    run: AttackRun,
    attack: Attack,
    oracle: Any,
    budget: int,
    name: str,
    draws_as: str | None = None,
    chunk: int | None = None,
    points: int = 0,
) -> tuple[Any, dict[str, int]]:
    """Runs an attack to its end against an oracle in its own program, and holds its rows against budget and formula.

    Args:
      name: of the stage. draws_as, chunk: see `Workbench.stage`.
      points: how often the clone is measured on the way; see `progress`.

    Returns:
      The attack's last state, and ``victim_rows`` (and ``explanation_rows``) as the ledger counts them.

    Raises:
      BudgetError: before anything runs, when the rows do not fit the budget.
      LedgerError: when the attack asked another number of rows than its formula says.
    """
    if answers_on_host(oracle):
        return _paid_on_host(recipe, run, attack, oracle, budget, name, draws_as, chunk)
    fused = against(attack, oracle)
    assert isinstance(fused, Method)
    steps = recipe.steps(run.settings)
    per_step = rows_asked(attack)
    with Ledger(budget=budget) as ledger:
        watch = None
        if points:
            every = max(1, steps // points)
            chunk = every // -(-every // (chunk or 500))
            every -= every % chunk
            watch = functools.partial(_measure, recipe, run, name, per_step, every)
        with ledger.paying(steps * per_step, explained=recipe.explains):
            state = run.bench.stage(
                "extraction", f"{name}/attack", run.seed, fused, steps, rows=per_step, chunk=chunk, draws_as=draws_as,
                callback=watch,
            )  # fmt: skip
        check_spent(ledger, recipe.rows(run.settings))
        asked = ledger.counts()["rows"] or 0
    return state, {"victim_rows": asked, **({"explanation_rows": asked} if recipe.explains else {})}


def _paid_on_host(
    recipe: AttackRecipe,
    run: AttackRun,
    attack: Attack,
    oracle: Any,
    budget: int,
    name: str,
    draws_as: str | None,
    chunk: int | None,
) -> tuple[Any, dict[str, int]]:
    """`paid`, from a victim on the host: every answer is kept in a ledger of the run's directory."""
    steps = recipe.steps(run.settings)
    place = run.bench.out / "ledgers" / f"seed{run.seed}"
    place.mkdir(parents=True, exist_ok=True)
    with Ledger(place / f"{name}.sqlite", budget=budget) as ledger:
        # the stored rows that a new start would ask again count against a budget that is used to the row
        metered = Metered(oracle, ledger, samples=0)
        state = run.bench.stage(
            "extraction", f"{name}/attack", run.seed, against(attack, metered), steps, rows=rows_asked(attack),
            chunk=chunk, draws_as=draws_as,
        )  # fmt: skip
        check_spent(ledger, recipe.rows(run.settings))
        counts = ledger.counts()
    asked = counts["rows"] or 0
    return state, {"victim_rows": asked, **({"explanation_rows": asked} if recipe.explains else {})}


def _measure(
    recipe: AttackRecipe,
    run: AttackRun,
    name: str,
    per_step: int,
    every: int,
    done: int,
    state: Any,
    metrics: Any,
) -> None:
    """Writes down what the clone reaches after every so many steps; a point that is measured again replaces the first."""
    if done % every:
        return
    test = run.bench.dataset.test
    found = accuracy(recipe.read(run.clone, state).predict(test.images), test.labels)
    line = {"stage": name, "seed": run.seed, "rows": done * per_step, "accuracy": round(100 * found, 4)}
    path = run.bench.out / PROGRESS
    cut = path.exists() and not path.read_text().endswith("\n")  # a run was killed while it wrote
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(line) + "\n")


def progress(bench: Workbench, name: str, seed: int) -> dict[int, float]:
    """Rows -> accuracy in per cent of an attack's clone on the way, as far as `paid` was asked to measure it."""
    path = bench.out / PROGRESS
    written = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [
        json.loads(line) for line in written if line.startswith("{") and line.endswith("}\n")
    ]  # others were cut off
    found = {line["rows"]: line["accuracy"] for line in lines if (line["stage"], line["seed"]) == (name, seed)}
    return dict(sorted(found.items()))


def rows_asked(attack: Attack) -> int:
    """Rows of one iteration, read off the attack itself and not off its settings."""
    key = jax.random.key(0)
    return jax.eval_shape(attack.ask, key, jax.eval_shape(attack.init, key))[1].shape[0]


def closeness(run: Run[Any], clone: Any) -> dict[str, float]:
    """Total variation on the test set and, with labels, how often FGSM on the clone deceives the victim (1,000 test images)."""
    test, victim = run.dataset.test, run.teacher
    if not answers_freely(victim):
        return {}
    far = {"total_variation": total_variation(victim.predict(test.images), clone.predict(test.images))}
    if not test.labelled:
        return far
    images, labels = as_float(jnp.asarray(test.images[:1000])), test.labels[:1000]
    attacked = fgsm(getattr(clone, "answer", clone), images, jnp.asarray(labels), run.config.transfer_epsilon)
    moved = transfer_rate(victim.predict(np.asarray(images)), victim.predict(np.asarray(attacked)), labels)
    return far | ({} if moved["rate"] is None else {"transfer": 100 * moved["rate"]})


__all__ = [
    "AttackRecipe",
    "AttackRun",
    "CloneSettings",
    "EndpointSettings",
    "ExtractionSettings",
    "check_points",
    "closeness",
    "extracted",
    "measure_victims",
    "paid",
    "plain_oracle",
    "progress",
    "rows_asked",
    "victim_arms",
]
