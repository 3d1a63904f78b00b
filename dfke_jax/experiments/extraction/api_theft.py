"""Two models stolen whole through a prediction API, and what that costs."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.core.method import HostAttack
from dfke_jax.display.drawing import COLOURS, GRID, INK, MUTED, new_figure, short, tidy
from dfke_jax.display.numbers import decimal, mean_sd, signed, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.rivals import seed_by_seed
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.views import View
from dfke_jax.experiments.extraction.relu_extraction import (
    DoubleNetwork,
    HiddenLayerSettings,
    learnt,
)
from dfke_jax.extraction import Questions, ReluSearch, relu_network, softmax_regression
from dfke_jax.oracle import Ledger, Metered, Reveal, from_function, oracle_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARE = 0.8
_RATE = 0.05


@dataclasses.dataclass(frozen=True)
class ApiTheftSettings(HiddenLayerSettings):
    """Settings of api-theft."""

    budget: int = 20_000
    """Rows that may be asked of each victim; the ledger stops a theft that wants more."""
    price: float = 0.1
    """Dollars for a thousand rows; 0.1 is what Amazon Machine Learning took (Tramèr et al. 2016, table 7)."""

    def __post_init__(self):
        super().__post_init__()
        if self.budget < 1 or not self.price >= 0:
            raise InputError(
                f"the budget must be at least 1 row and the price not negative: {self.budget}, {self.price}"
            )


def arms(config: ApiTheftSettings) -> list[Arm]:
    """Of each victim: itself, one that was trained likewise, the theft, and what learning gives."""
    found = []
    for name, label, theft, control in (
        ("softmax", "Softmax regression", "solved", "learnt"),
        ("network", f"Network ({config.teacher})", "neurons found", "learnt"),
    ):
        place = {"victim": label}
        teacher = "teacher" if name == "network" else "softmax_victim"
        found += [
            Arm(teacher, f"Victim: {label.lower()}", "teacher", factors=place),
            Arm(f"{name}_independent", f"{label}, trained likewise", "anchor", factors=place),
            Arm(name, f"{label}, {theft}", "method", factors=place),
            Arm(f"{name}_control", f"{label}, {control}", "control", factors=place),
        ]
    return found


def measure(run: Run[ApiTheftSettings]) -> None:
    """One seed: trains both victims, and steals each."""
    run.record("teacher", run.teacher, budget=run.bench.supervised_budget)
    _steal_softmax(run)
    _steal_network(run)
    run.note(
        "Both victims answer probabilities in float64, unrounded, to rows of any range. Answers in float32, or rounded to a "
        "few decimals, stop the theft of the network."
    )


# ---- a softmax regression


def _steal_softmax(run: Run[ApiTheftSettings]) -> None:
    shape = run.dataset.shape
    victim, other = (_regression(run, seed) for seed in (run.seed, run.seed + run.config.seeds))
    truth = _probabilities(victim)
    real = {"real_samples": int(_SHARE * len(run.dataset.train))}
    run.enter("softmax_victim", accuracy=_accuracy(run, truth), budget=real)
    _enter(run, "softmax_independent", truth, _probabilities(other), real)
    questions = Questions(shape)
    found, asked, answers = _stolen(run, "softmax", softmax_regression(questions), victim)
    _enter(run, "softmax", truth, found, {"victim_rows": asked})
    rows = questions.first(np.random.default_rng(run.seed))
    assert len(rows) == asked, "a row saturated: the control is to learn from the same answers"
    with run.clock("learning"):
        learnt = _by_steps(rows, answers(rows), run.config.learning_steps)
    budget = {"victim_rows": asked, "training_steps": run.config.learning_steps}
    _enter(run, "softmax_control", truth, learnt, budget)


def _regression(run: Run[ApiTheftSettings], seed: int) -> Any:
    """scikit-learn's, fitted to four fifths of the training images; which, the seed says."""
    from sklearn.linear_model import LogisticRegression

    train = run.dataset.train
    chosen = np.random.default_rng(seed).permutation(len(train))[: int(_SHARE * len(train))]
    rows = _rows(np.asarray(train.images)[chosen])
    with run.clock("anchors"):
        return LogisticRegression(max_iter=2000).fit(rows.reshape(len(rows), -1), np.asarray(train.labels)[chosen])


def _probabilities(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: model.predict_proba(rows.reshape(len(rows), -1))


def _by_steps(rows: np.ndarray, answers: np.ndarray, steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """A softmax regression learnt from answers (N, K) by steps of Adam on their cross-entropy, from zero."""
    flat = np.concatenate([np.ones((len(rows), 1)), rows.reshape(len(rows), -1)], 1)
    weights = np.zeros((flat.shape[1], answers.shape[1]))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        gradient = flat.T @ (scipy.special.softmax(flat @ weights, 1) - answers) / len(flat)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - _RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return lambda more: scipy.special.softmax(more.reshape(len(more), -1) @ weights[1:] + weights[0], 1)


# ---- a network of one hidden layer


def _steal_network(run: Run[ApiTheftSettings]) -> None:
    victim = DoubleNetwork.of(run.teacher)
    other = DoubleNetwork.of(run.bench.supervised("api_theft_independent", run.config.teacher, run.seed))
    truth = victim.probabilities
    _enter(run, "network_independent", truth, other.probabilities, run.bench.supervised_budget)
    shape, classes = run.dataset.shape, run.dataset.num_classes
    endpoint = from_function(truth, shape, classes, repeatable=True)
    attack = relu_network(ReluSearch(shape, gives="probabilities"))
    found, asked, _ = _stolen(run, "network", attack, endpoint)
    _enter(run, "network", truth, _softened(found), {"victim_rows": asked})
    count, steps = min(asked, run.config.learning_rows), run.config.learning_steps
    with run.clock("distillation"):
        copy = learnt(victim, shape, count, steps, run.seed)
    budget = {"victim_rows": count, "training_steps": steps}
    _enter(run, "network_control", truth, _softened(copy), budget)


def _softened(logits: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: scipy.special.softmax(logits(rows), 1)


# ---- both


def _stolen(run: Run[ApiTheftSettings], name: str, attack: HostAttack, victim: Any) -> tuple[Any, int, Callable]:
    """What was found, how many rows the ledger counts, and the victim as it was asked."""
    place = run.bench.out / "ledgers" / f"seed{run.seed}"
    place.mkdir(parents=True, exist_ok=True)
    oracle: Any = oracle_for(victim, Reveal(), input_shape=run.dataset.shape, transport="float64")
    with Ledger(place / f"{name}.sqlite", budget=run.config.budget) as ledger, run.clock("extraction"):
        solution = run_host(attack, Metered(oracle, ledger), run.seed)
        asked = ledger.counts()["rows"] or 0
    if not solution.complete:
        raise InputError(f"{run.config.budget} rows were not enough to steal the {name}; ask for a larger --budget")
    return solution.found, asked, oracle


def _enter(
    run: Run[ApiTheftSettings],
    arm: str,
    truth: Callable[[np.ndarray], np.ndarray],
    found: Callable[[np.ndarray], np.ndarray],
    budget: dict[str, int],
) -> None:
    """Compares answers on the test images and on as many uniform rows."""
    images = _rows(run.dataset.test.images)
    noise = np.random.default_rng(run.seed).random(images.shape)
    with run.clock("evaluation"):
        theirs, ours, theirs_of_noise, ours_of_noise = truth(images), found(images), truth(noise), found(noise)
    error = max(np.abs(ours - theirs).max(), np.abs(ours_of_noise - theirs_of_noise).max())
    same = lambda a, b: round(100 * float((a.argmax(1) == b.argmax(1)).mean()), 4)
    metrics = {
        "agreement_uniform": same(ours_of_noise, theirs_of_noise),
        "log10_error": round(float(np.log10(error + 1e-300)), 2),
        "same_bits": round(100 * float((ours.astype(np.float32) == theirs.astype(np.float32)).mean()), 4),
    }
    if "victim_rows" in budget:
        metrics["dollars"] = round(budget["victim_rows"] * run.config.price / 1000, 6)
    run.enter(arm, metrics, accuracy=_accuracy(run, found), agreement=same(ours, theirs), budget=budget)


def _accuracy(run: Run[ApiTheftSettings], answers: Callable[[np.ndarray], np.ndarray]) -> float:
    right = answers(_rows(run.dataset.test.images)).argmax(1) == np.asarray(run.dataset.test.labels)
    return round(100 * float(right.mean()), 4)


def _rows(images: Any) -> np.ndarray:
    images = np.asarray(images)
    return images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)


# ---- what it looks like


def _thefts(result: Result) -> list[tuple[Arm, Arm]]:
    return [(method, control) for method, control in result.pairs() if "log10_error" in method.metrics]


def _dollars(arm: Arm) -> str:
    return f"${arm.metrics['dollars'][0]:.4f}"


def _error(arm: Arm) -> str:
    return f"{10 ** max(arm.metrics['log10_error']):.0e}".replace("e-0", "e-")


def _closeness(arm: Arm) -> str:
    exact = ": bit for bit in float32" if min(arm.metrics["same_bits"]) == 100 else ""
    return f"no probability further off than {_error(arm)}{exact}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def theft_table(result: Result) -> Table:
    """A row per theft: what was asked and paid, and how alike the copy is."""
    rows = [
        (
            method.label,
            f"{method.budget['victim_rows']:,}",
            _dollars(method),
            spread(method.agreement, 1),
            spread(control.agreement, 1),
            _error(method),
            decimal(mean_sd(method.metrics["same_bits"])[0]),
        )
        for method, control in _thefts(result)
    ]
    head = ("stolen", "rows asked", "price", "agreement %", "control: agreement %", "largest error", "same bits %")
    narrow = ("stolen", "rows", "price", "agreement %", "control %", "error", "bits %")
    return Table(head, rows, narrow=narrow, notes=(_WORDS,))


_WORDS = (
    "Rows: of the first seed, as the ledger counts them (in ledgers/), and their price. Agreement: with the victim, on test "
    "images; control: the same model, learnt from as many answers. Error: the largest of a probability, on test images "
    "and uniform rows, over all seeds. Bits: probabilities that are equal to the bit in float32."
)


def theft_sentences(result: Result) -> list[str]:
    """What was stolen for how much, beside what learning gives from as many answers."""
    found = []
    for method, control in _thefts(result):
        differences = [a - b for a, b in zip(method.agreement, control.agreement, strict=True)]
        mean, has = mean_sd(differences)[0], f"{control.label} ({spread(control.agreement)} %)"
        words = f"{signed(mean)} points over {has}" if mean > 0 else f"no better than {has}: {signed(mean)} points"
        found.append(
            f"{method.label}: {method.budget['victim_rows']:,} rows for {_dollars(method)} give a copy that agrees "
            f"with its victim on {spread(method.agreement)} % of the test images of {result.dataset} over "
            f"{_seeds(len(method.agreement))}, {_closeness(method)}; {words}, "
            f"{seed_by_seed(differences)}."
        )
    return found


def theft_figure(result: Result) -> "Figure":
    """Agreement with the victim: the theft, what learning gives, and a model that was trained likewise."""
    thefts = _thefts(result)
    if not thefts:
        raise InputError("there is no theft to draw")
    figure = new_figure((7.6, 1.5 * len(thefts) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    ticks: list[tuple[float, str, str]] = []
    for place, (method, control) in enumerate(thefts):
        beside = [arm for arm in result.arms if arm.role == "anchor" and arm.factors == method.factors]
        for row, arm in enumerate((method, control, *beside)):
            height, colour = 3.6 * place + row, COLOURS[arm.role]
            mean = mean_sd(arm.agreement)[0]
            axes.plot([0, mean], [height, height], color=colour, linewidth=7, solid_capstyle="butt", alpha=0.28)
            axes.plot(arm.agreement, [height] * len(arm.agreement), "o", color=colour, markersize=4)
            axes.text(1.01, height, spread(arm.agreement), transform=axes.get_yaxis_transform(), va="center",
                      fontsize=8.5, color=colour)  # fmt: skip
            paid = f"{arm.budget['victim_rows']:,} rows, \\{_dollars(arm)}" if "victim_rows" in arm.budget else ""
            ticks.append((height, f"{short(arm.label, 52)}\n{paid}".rstrip(), colour))
    axes.set_xlim(0, 100)
    axes.set_ylim(3.6 * len(thefts) - 1, -0.8)
    tidy(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_yticks([height for height, _, _ in ticks], [text for _, text, _ in ticks])
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    for tick, (_, _, colour) in zip(axes.get_yticklabels(), ticks, strict=True):
        tick.set_color(colour)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("test images answered as the victim answers them, %; dots: seeds", fontsize=8, color=MUTED)
    return figure


THEFTS = View(
    "thefts",
    "What was stolen, and for how much",
    holds=lambda result: bool(_thefts(result)),
    table=theft_table,
    figure=theft_figure,
    sentences=theft_sentences,
    leads=True,
)

RECIPE = register(
    Recipe(
        name="api-theft",
        title="Two models stolen through a prediction API, and the bill",
        summary="A softmax regression of scikit-learn from as many answers as it has weights a class, and a network of one "
        "hidden layer from jumps of its gradients; every row is counted by a ledger and has its price. The controls learn "
        "from as many answers.",
        paper="Tramèr et al., Stealing Machine Learning Models via Prediction APIs, USENIX Security 2016; Jagielski et al., "
        "USENIX Security 2020",
        config=ApiTheftSettings,
        arms=arms,
        measure=measure,
        views=(THEFTS,),
        time="40 s of CPU time (digits)",
        datasets=("digits", "mnist", "fashion_mnist"),
        presets={"digits": {"teacher": "mlp_16", "teacher_steps": 1000}},
    )
)

__all__ = ["THEFTS", "ApiTheftSettings", "theft_figure", "theft_sentences", "theft_table"]
