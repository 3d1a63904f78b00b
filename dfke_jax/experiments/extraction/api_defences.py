"""Defences of linear models behind prediction APIs, and how far off the copy is that each attack makes."""

import dataclasses
import warnings
from typing import Any, ClassVar

import jax
import numpy as np
import scipy.optimize
import scipy.special

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data import TABLES, Table, load_table
from dfke_jax.evaluation.fidelity import extraction_errors
from dfke_jax.experiments.bench.registry import Recipe, register
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.extraction.api_views import API_DEFENCES
from dfke_jax.experiments.extraction.private import private_parameters, private_training
from dfke_jax.experiments.extraction.thefts import BINARY, answers_of, split
from dfke_jax.extraction import (
    AffineModel,
    Questions,
    RetrainingSettings,
    linear_clone,
    logistic_regression,
    retraining,
    softmax_clone,
    softmax_regression,
)
from dfke_jax.nn.precision import Precision
from dfke_jax.oracle import Ledger, Metered, Reveal, from_function, oracle_for

_EQUATIONS = "Equations, D + 1 rows"
_FITTED = "Cross-entropy, 10 (D + 1) rows"
_ADAPTIVE = "Adaptive retraining on labels, 20 (D + 1)"
ATTACKS = {"equations": _EQUATIONS, "fitted": _FITTED, "adaptive": _ADAPTIVE}
DEFENCES = {
    "none": "None",
    "round_4": "Rounding, 4 decimals",
    "round_3": "Rounding, 3 decimals",
    "round_2": "Rounding, 2 decimals",
    "label": "Labels alone",
    "ensemble": "Ensemble of 10",
    "private_parameters": "Private parameters",
    "private_training": "Private training",
    "no_bias": "No bias parameter",
}
_BINARY_ALONE = ("private_parameters", "private_training")


@dataclasses.dataclass(frozen=True)
class ApiDefencesSettings:
    """Settings of api-defences."""

    stand_in: ClassVar[str] = "digits"
    source: ClassVar[str] = "the tables of dfke_jax.data.load_table"

    dataset: str = "tables"
    """A name for the tables."""
    seeds: int = 3
    """How many seeds; each has its own splits, victims and questions."""
    seed: int = 0
    """The first seed."""
    precision: Precision = "float32"
    """Read by the workbench alone: victims and attacks compute in float64."""
    tables: tuple[str, ...] = ("breast_cancer", "adult_income", "iris", "digits")
    """Which tables."""
    defences: tuple[str, ...] = tuple(DEFENCES)
    """Which defences; none is always among them, and private ones are for two classes."""
    epsilon: float = 1.0
    """Of private victims; private training has a δ of 1e-5 besides."""
    members: int = 10
    """Models of an ensemble, each fitted to a bootstrap of the training rows."""
    uniform_rows: int = 10_000
    """Uniform rows on which copies are compared with their victims."""

    def __post_init__(self):
        for name in self.tables:
            if name not in TABLES:
                raise UnknownNameError("table", name, TABLES)
        for name in self.defences:
            if name not in DEFENCES:
                raise UnknownNameError("defence", name, DEFENCES)
        if "none" not in self.defences or not self.tables:
            raise InputError("defences are compared with none, which must be among them, on one table at least")
        if min(self.seeds, self.members, self.uniform_rows) < 1 or not self.epsilon > 0:
            raise InputError("sizes must be at least 1 and epsilon positive")


def _cells(config: ApiDefencesSettings) -> list[tuple[str, str, str]]:
    """(table, defence, attack): labels alone are attacked by labels alone."""
    return [
        (table, defence, attack)
        for table in config.tables
        for defence in config.defences
        if table in BINARY or defence not in _BINARY_ALONE
        for attack in ATTACKS
        if defence != "label" or attack == "adaptive"
    ]


def arms(config: ApiDefencesSettings) -> list[Arm]:
    """Of every table the plain victim, what is deployed behind each defence, and every attack on it."""
    found = []
    for table in config.tables:
        found.append(Arm(f"{table}_victim", f"Victim on {table}", "teacher"))
    for table, defence in dict.fromkeys((table, defence) for table, defence, _ in _cells(config)):
        label = f"Deployed on {table}: {DEFENCES[defence]}"
        found.append(Arm(f"{table}_{defence}", label, "anchor", factors={"table": table, "defence": DEFENCES[defence]}))
    for table, defence, attack in _cells(config):
        role = "control" if defence == "none" else "method"
        factors = {"table": table, "defence": DEFENCES[defence], "attack": ATTACKS[attack]}
        label = f"{ATTACKS[attack]}, {DEFENCES[defence]}, {table}"
        control = f"{table}_none_{attack}"
        found.append(Arm(f"{table}_{defence}_{attack}", label, role, control=control, factors=factors))
    return found


# ---- what is deployed


class Ensemble:
    """The mean of several models' probabilities.

    Attributes:
      members: fitted classifiers of the same classes.
    """

    def __init__(self, members: list[Any]):
        self.members = members

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Rows (B, D) -> (B, K)."""
        return np.mean([member.predict_proba(rows) for member in self.members], 0)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Classes (B,)."""
        return self.predict_proba(rows).argmax(1)


class Answering:
    """An affine model in scikit-learn's form."""

    def __init__(self, model: AffineModel):
        self.predict_proba = model

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Classes (B,)."""
        return self.predict_proba(rows).argmax(1)


def _deployed(defence: str, table: Table, config: ApiDefencesSettings, seed: int, plain: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    rows, targets = table.train_rows, table.train_targets
    rng = np.random.default_rng([seed, 4])
    if defence == "ensemble":
        members = []
        while len(members) < config.members:
            drawn = rng.integers(len(rows), size=len(rows))
            if len(np.unique(targets[drawn])) == table.num_classes:
                members.append(LogisticRegression(max_iter=1000).fit(rows[drawn], targets[drawn]))
        return Ensemble(members)
    if defence == "private_parameters":
        # as regularised as keeps the noise below the weights: λ = 1/√n
        size = 1 / np.sqrt(len(rows))
        return Answering(private_parameters(rows, targets, config.epsilon, regularisation=size, rng=rng))
    if defence == "private_training":
        return Answering(private_training(rows, targets, config.epsilon, seed=seed))
    if defence == "no_bias":
        return LogisticRegression(max_iter=1000, fit_intercept=False).fit(rows, targets)
    return plain


def _reveal(defence: str) -> Reveal:
    if defence == "label":
        return Reveal("label")
    return Reveal(decimals=int(defence[-1])) if defence.startswith("round_") else Reveal()


# ---- attacks


def softmax_fit(schema: Any, rows: int, *, decay: float = 1e-8) -> HostAttack:
    """The softmax model of least cross-entropy to the answers of uniform rows, whatever the victim is.

    Args:
      schema: of the rows. rows: how many. decay: of the squared weights, against the mean loss.
    """

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        asked = schema.uniform(rng, rows)
        answers = np.asarray(ask(asked), np.float64)
        targets = answers / np.maximum(answers.sum(1, keepdims=True), 1e-12)
        matrix = np.concatenate([asked, np.ones((rows, 1))], 1)
        shape = (matrix.shape[1], answers.shape[1])

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            scores = matrix @ flat.reshape(shape)
            logs = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
            slope = matrix.T @ (np.exp(logs) * targets.sum(1, keepdims=True) - targets) / rows
            return -float((targets * logs).sum()) / rows + decay * float(flat @ flat), slope.ravel() + 2 * decay * flat

        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10}
        found = scipy.optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
        solved = found.x.reshape(shape)
        return Solution(AffineModel(solved[:-1], solved[-1], "softmax"))

    return HostAttack(solve)


def _attack(name: str, table: Table, defence: str) -> HostAttack:
    unknowns = table.schema.width + 1
    if name == "adaptive":
        clone = linear_clone if table.num_classes == 2 else softmax_clone
        settings = RetrainingSettings(20 * unknowns, "adaptive")
        return retraining(table.schema, settings, clone, known=table.test_rows[split(table)[0]])
    if name == "fitted":
        return softmax_fit(table.schema, 10 * unknowns)
    low, high = table.schema.box
    questions = Questions(table.schema.width, box=(low, np.where(high > low, high, low + 1)))
    solver = logistic_regression if table.num_classes == 2 else softmax_regression
    return solver(questions, _reveal(defence))


def measure(run: Run[ApiDefencesSettings]) -> None:
    """One seed: every table's victim behind every defence, stolen in every way."""
    for name in run.config.tables:
        _measure_table(run, name)


def _measure_table(run: Run[ApiDefencesSettings], name: str) -> None:
    from sklearn.linear_model import LogisticRegression

    config = run.config
    table = load_table(name, jax.random.key(run.seed), data_dir=run.bench.data_dir)
    kept = split(table)[1]
    tests, targets = table.test_rows[kept], table.test_targets[kept]
    uniform = table.schema.uniform(np.random.default_rng([run.seed, 2]), config.uniform_rows)
    budget = {"real_samples": len(table.train_rows)}
    with run.clock("anchors"):
        plain = LogisticRegression(max_iter=1000).fit(table.train_rows, table.train_targets)
    first = plain.predict(tests)
    run.enter(f"{name}_victim", accuracy=_share(first, targets), budget=budget)
    models: dict[str, Any] = {}
    for of, defence, attack in _cells(config):
        if of != name:
            continue
        if defence not in models:
            with run.clock("anchors"):
                models[defence] = _deployed(defence, table, config, run.seed, plain)
            labels = models[defence].predict(tests)
            figures = {"off_plain_uniform": 100 - _share(models[defence].predict(uniform), plain.predict(uniform))}
            run.enter(
                f"{name}_{defence}",
                figures,
                accuracy=_share(labels, targets),
                agreement=_share(labels, first),
                budget=budget,
            )
        model = models[defence]
        make = lambda model=model, defence=defence, attack=attack: _stolen(
            model, table, defence, attack, run.seed, uniform
        )
        with run.clock("extraction"):
            made = run.once(f"{name}_{defence}_{attack}", make)
        run.enter(
            f"{name}_{defence}_{attack}",
            made["metrics"],
            accuracy=made["accuracy"],
            agreement=made["agreement"],
            budget={"victim_rows": int(made["metrics"]["queries"])},
        )
        if made["failed"]:
            run.note(f"{ATTACKS[attack]} behind {DEFENCES[defence]} on {name} ended in an error: {made['failed']}")


def _stolen(model: Any, table: Table, defence: str, attack: str, seed: int, uniform: np.ndarray) -> dict[str, Any]:
    kept = split(table)[1]
    tests, targets = table.test_rows[kept], table.test_targets[kept]
    victim = from_function(model.predict_proba, (table.schema.width,), table.num_classes, repeatable=True)
    oracle: Any = oracle_for(victim, Reveal("label") if attack == "adaptive" else _reveal(defence), transport="float64")
    failed, found = "", None
    with Ledger() as ledger, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = run_host(_attack(attack, table, defence), Metered(oracle, ledger), seed).found
        except InputError as error:
            failed = str(error)
        queries = ledger.counts()["rows"] or 0
    if found is None:  # all that is left: the class that most answers have
        from sklearn.dummy import DummyClassifier

        found = DummyClassifier().fit(uniform[:100], model.predict(uniform[:100]))
    labels = attack == "adaptive" or bool(failed)
    errors = extraction_errors(answers_of(model, labels), answers_of(found, labels), tests, uniform)
    answers = np.asarray(answers_of(found, labels)(tests))
    metrics = {"queries": float(queries), "failed": float(bool(failed))}
    metrics |= {f"off_{part}": 100 * errors[f"r_{part}"] for part in ("test", "uniform")}
    metrics |= {f"tv_{part}": errors.get(f"tv_{part}", float("nan")) for part in ("test", "uniform") if not labels}
    return {
        "accuracy": _share(answers.argmax(1) if answers.ndim == 2 else answers, targets),
        "agreement": round(100 * (1 - errors["r_test"]), 4),
        "metrics": metrics,
        "failed": failed,
    }


def _share(labels: np.ndarray, others: np.ndarray) -> float:
    return round(100 * float(np.mean(labels == others)), 4)


RECIPE = register(
    Recipe(
        name="api-defences",
        title="Defences of linear models behind prediction APIs",
        summary="Rounding, labels alone, an ensemble, differential privacy of parameters and in training, and a "
        "model without bias, each stolen by equations, by cross-entropy and by labels; errors against what is "
        "deployed. The control of each is the same attack on the plain victim.",
        paper="Tramèr et al., USENIX Security 2016, section 7; Chaudhuri et al., JMLR 2011; Abadi et al., CCS 2016",
        config=ApiDefencesSettings,
        arms=arms,
        measure=measure,
        time="not measured",
        datasets=("tables",),
        presets={"tables": {}},
        views=(API_DEFENCES,),
    )
)
