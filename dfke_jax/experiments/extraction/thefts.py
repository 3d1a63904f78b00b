"""Thefts of models of tables: which victim, which attack, what its copy answers, and its control."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from dfke_jax.core import run_host
from dfke_jax.core.errors import InputError
from dfke_jax.core.method import HostAttack
from dfke_jax.data import Table, quantile_binning
from dfke_jax.evaluation.fidelity import extraction_errors
from dfke_jax.extraction import (
    Questions,
    RetrainingSettings,
    TreeSettings,
    binned_regression,
    coupled_halfspace,
    find_paths,
    hidden_layer,
    linear_clone,
    logistic_regression,
    lowd_meek,
    mlp_clone,
    one_versus_rest,
    rbf_clone,
    retraining,
    softmax_clone,
    softmax_regression,
    top_down,
)
from dfke_jax.oracle import Ledger, Metered, Reveal, binned_victim, oracle_for, tree_victim

BINARY = ("circles", "moons", "breast_cancer", "german_credit", "adult_income")
SEVERAL = ("blobs", "five_class", "iris", "wine", "digits", "adult_race")
_EVERY = (*BINARY, *SEVERAL)
_TREES = {
    "moons": {"max_leaf_nodes": 44},
    "circles": {"max_leaf_nodes": 44},
    "digits": {"max_depth": 8},
    "german_credit": {"max_leaf_nodes": 26},
    "adult_income": {"max_leaf_nodes": 100},
    "adult_race": {"max_leaf_nodes": 100},
    "five_class": {"max_leaf_nodes": 60},
    "blobs": {"max_leaf_nodes": 60},
}
_GAMMA = 1.0
_MOST_TRAINED = 15_000
_MOST_LABELS = 2_000
KNOWN = 10
"""Rows of the table, without their targets, that a thief who retrains on labels has; errors are measured on others."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What thefts take from a recipe's settings.

    Attributes:
      hidden: units of networks. bins: of a hidden binning. label_rows: of retraining, a feature and
        one of binary models. label_unknown_rows: an unknown of models of several classes, 2,000 in all
        at most.
        iterations: of the search for a network.
    """

    hidden: int = 20
    bins: int = 10
    label_rows: int = 20
    label_unknown_rows: int = 20
    iterations: int = 1000


@dataclasses.dataclass(frozen=True)
class Theft:
    """One attack on one kind of victim.

    Attributes:
      label: for tables. victim: its kind, of `VICTIMS`. tables: that it suits.
      attack: (table, sizes) -> the attack.
      oracle: (estimator, table, sizes) -> what is asked.
      fitted: (sizes) -> an unfitted classifier of the victim's kind, for the control.
      labels: whether the attack sees labels alone. Its control then has the `KNOWN` rows as well.
    """

    label: str
    victim: str
    tables: tuple[str, ...]
    attack: Callable[[Table, Sizes], HostAttack]
    oracle: Callable[[Any, Table, Sizes], Any]
    fitted: Callable[[Table, Sizes], Any]
    labels: bool = False


# ---- victims


def _linear(table: Table, sizes: Sizes) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def _one_versus_rest(table: Table, sizes: Sizes) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(LogisticRegression(max_iter=1000))


def _network(table: Table, sizes: Sizes) -> Any:
    from sklearn.neural_network import MLPClassifier

    small = len(table.train_rows) < 5000
    return MLPClassifier(
        (sizes.hidden,),
        activation="tanh",
        random_state=0,
        max_iter=200 if small else 20,
        batch_size=min(256, len(table.train_rows)),  # type: ignore[arg-type]
    )


def _tree(table: Table, sizes: Sizes) -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(random_state=0, **_TREES.get(table.name, {}))  # type: ignore[arg-type]


def _binned(table: Table, sizes: Sizes) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    binning = quantile_binning(table.schema, table.train_rows, sizes.bins)
    return make_pipeline(FunctionTransformer(binning), LogisticRegression(max_iter=1000))


def _rbf(table: Table, sizes: Sizes) -> Any:
    from sklearn.svm import SVC

    return SVC(kernel="rbf", C=10.0, gamma=_GAMMA)  # type: ignore[arg-type]


def _polynomial(table: Table, sizes: Sizes) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    return make_pipeline(PolynomialFeatures(2), LogisticRegression(C=100.0, max_iter=1000))


VICTIMS: dict[str, tuple[str, Callable[[Table, Sizes], Any]]] = {
    "linear": ("logistic or softmax", _linear),
    "one_versus_rest": ("one versus rest", _one_versus_rest),
    "network": ("one hidden layer", _network),
    "tree": ("decision tree", _tree),
    "binned": ("logistic on hidden bins", _binned),
    "rbf": ("RBF SVM", _rbf),
    "polynomial": ("polynomial, degree 2", _polynomial),
}
"""Kind -> (label, the unfitted estimator of a table)."""


def trained(kind: str, table: Table, sizes: Sizes, rng: np.random.Generator | None = None) -> Any:
    """A victim, fitted to the training rows of a table; with `rng` to a bootstrap of them."""
    rows, targets = table.train_rows, table.train_targets
    if rng is not None:
        drawn = rng.integers(len(rows), size=len(rows))
        rows, targets = rows[drawn], targets[drawn]
    if kind in ("network", "rbf"):
        rows, targets = rows[:_MOST_TRAINED], targets[:_MOST_TRAINED]
    made = VICTIMS[kind][1](table, sizes)
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore")  # a victim that did not converge is one nevertheless
        return made.fit(rows, targets)


def split(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Places of the test rows that the thief has, and of those on which errors are measured."""
    order = np.random.default_rng(0).permutation(len(table.test_rows))  # rows may be sorted by class
    return order[:KNOWN], np.sort(order[KNOWN:])


# ---- oracles


def _probabilities(model: Any, table: Table, sizes: Sizes) -> Any:
    return oracle_for(model, input_shape=(table.schema.width,), transport="float64")


def _labels(model: Any, table: Table, sizes: Sizes) -> Any:
    return oracle_for(model, Reveal("label"), input_shape=(table.schema.width,), transport="float64")


def _leaves(model: Any, table: Table, sizes: Sizes) -> Any:
    return oracle_for(tree_victim(model), Reveal("logits"))


def _nodes(model: Any, table: Table, sizes: Sizes) -> Any:
    return oracle_for(tree_victim(model, incomplete=True), Reveal("logits"))


def _confidence(model: Any, table: Table, sizes: Sizes) -> Any:
    return oracle_for(model, input_shape=(table.schema.width,))


def _hidden_bins(model: Any, table: Table, sizes: Sizes) -> Any:
    binning = model[0].func
    return oracle_for(binned_victim(model[1], binning), transport="float64")


# ---- attacks


def _equations(table: Table, sizes: Sizes) -> HostAttack:
    low, high = table.schema.box
    questions = Questions(table.schema.width, box=(low, np.where(high > low, high, low + 1)))
    binary = table.num_classes == 2
    return logistic_regression(questions) if binary else softmax_regression(questions)


def _retrained(strategy: Any) -> Callable[[Table, Sizes], HostAttack]:
    def make(table: Table, sizes: Sizes) -> HostAttack:
        unknowns, known = table.schema.width + 1, table.test_rows[split(table)[0]]
        if table.num_classes == 2:
            rows, clone = sizes.label_rows * unknowns, linear_clone
        else:
            rows, clone = sizes.label_unknown_rows * unknowns * table.num_classes, softmax_clone
        settings = RetrainingSettings(min(rows, _MOST_LABELS), strategy)
        return retraining(table.schema, settings, clone, known=known)

    return make


def _separating(table: Table, sizes: Sizes) -> Any:
    return linear_clone() if table.num_classes == 2 else softmax_clone()


def _raw(table: Table, sizes: Sizes) -> Any:
    return softmax_clone()


def _by_identity(table: Table, sizes: Sizes) -> HostAttack:
    return find_paths(table.schema)


def _by_confidence(table: Table, sizes: Sizes) -> HostAttack:
    return find_paths(table.schema, TreeSettings(identified=False))


def _unvalidated(table: Table, sizes: Sizes) -> HostAttack:
    return find_paths(table.schema, TreeSettings(identified=False, rounds=0))


def _rbf_retrained(table: Table, sizes: Sizes) -> HostAttack:
    rows = 100 * sizes.label_rows + 50
    return retraining(table.schema, RetrainingSettings(rows, "adaptive"), lambda: rbf_clone(_GAMMA))


_CONFIDENCE = ("circles", "moons", "blobs", "iris", "wine", "breast_cancer", "german_credit", "adult_income")

THEFTS: dict[str, Theft] = {
    "equations": Theft("Equations", "linear", _EVERY, _equations, _probabilities, _separating),
    "one_versus_rest": Theft(
        "Cross-entropy, one versus rest",
        "one_versus_rest",
        SEVERAL,
        lambda table, sizes: one_versus_rest(table.schema),
        _probabilities,
        _separating,
    ),
    "hidden_layer": Theft(
        "Cross-entropy, network",
        "network",
        _EVERY,
        lambda table, sizes: hidden_layer(table.schema, sizes.hidden, iterations=sizes.iterations),
        _probabilities,
        lambda table, sizes: mlp_clone(sizes.hidden),
    ),
    "binned": Theft(
        "Hidden bins",
        "binned",
        _EVERY,
        lambda table, sizes: binned_regression(table.schema),
        _hidden_bins,
        _raw,
    ),
    "paths": Theft("Paths, leaf identities", "tree", _EVERY, _by_identity, _leaves, _tree),
    "top_down": Theft(
        "From the root down",
        "tree",
        _EVERY,
        lambda table, sizes: top_down(table.schema),
        _nodes,
        _tree,
    ),
    "confidence": Theft("Paths by confidence, validated", "tree", _CONFIDENCE, _by_confidence, _confidence, _tree),
    "confidence_alone": Theft("Paths by confidence alone", "tree", _CONFIDENCE, _unvalidated, _confidence, _tree),
    "lowd_meek": Theft(
        "Lowd–Meek",
        "linear",
        BINARY,
        lambda table, sizes: lowd_meek(table.schema),
        _labels,
        _separating,
        labels=True,
    ),
    "halfspace": Theft(
        "Halfspaces by synthesis",
        "linear",
        BINARY,
        lambda table, sizes: coupled_halfspace(table.schema),
        _labels,
        _separating,
        labels=True,
    ),
    "lowd_meek_2": Theft(
        "Lowd–Meek, degree 2",
        "polynomial",
        ("circles", "moons"),
        lambda table, sizes: lowd_meek(table.schema, degree=2, precision=2.0**-20),
        _labels,
        _polynomial,
        labels=True,
    ),
    "adaptive": Theft("Retraining, adaptive", "linear", _EVERY, _retrained("adaptive"), _labels, _separating, True),
    "line_search": Theft(
        "Retraining, line search", "linear", _EVERY, _retrained("line_search"), _labels, _separating, True
    ),
    "rbf": Theft(
        "Retraining, RBF SVM",
        "rbf",
        ("circles", "moons"),
        _rbf_retrained,
        _labels,
        lambda table, sizes: rbf_clone(_GAMMA),
        labels=True,
    ),
}
"""By name, in the order of tables."""


# ---- one of them


def answers_of(model: Any, labels: bool) -> Callable[[np.ndarray], Any]:
    """Of a victim or a copy: probabilities (N, K), or labels (N,)."""
    if labels or not (hasattr(model, "predict_proba") or callable(model)):
        return model.predict
    return model.predict_proba if hasattr(model, "predict_proba") else model


def stolen(
    theft: Theft, model: Any, table: Table, sizes: Sizes, seed: int, price: float, uniform: np.ndarray
) -> dict[str, Any]:
    """Runs a theft through a ledger, and compares copy and control with the victim.

    Returns:
      ``copy`` and ``control``, each with ``accuracy``, ``agreement`` and metrics: ``off_test`` and
      ``off_uniform`` in per cent, with probabilities on both sides ``tv_test`` and ``tv_uniform``; the
      copy with ``queries``, ``seconds`` and ``dollars``; ``failed``, why the attack ended in an error,
      or empty.
    """
    oracle = theft.oracle(model, table, sizes)
    failed, found = "", None
    with Ledger() as ledger:
        metered = Metered(oracle, ledger)
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = run_host(theft.attack(table, sizes), metered, seed).found
        except InputError as error:
            failed = str(error)
        seconds = time.perf_counter() - began
        queries = ledger.counts()["rows"] or 0
    rng = np.random.default_rng([seed, 1])
    rows = table.schema.uniform(rng, max(queries, 2))
    if theft.labels:
        rows = np.concatenate([table.test_rows[split(table)[0]], rows])[: max(queries, 2)]
    control = _fitted(theft.fitted(table, sizes), rows, np.asarray(model.predict(rows)))
    compare = lambda clone, labels: _compared(model, clone, labels, table, uniform)
    copy = compare(control if found is None else found, theft.labels)
    copy["metrics"] |= {
        "queries": float(queries),
        "seconds": round(seconds, 3),
        "dollars": queries * price / 1000,
        "failed": float(found is None),
    }
    return {"copy": copy, "control": compare(control, True), "failed": failed}


def _fitted(made: Any, rows: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.dummy import DummyClassifier

    if len(np.unique(labels)) < 2:  # uniform rows may all be answered alike
        made = DummyClassifier(strategy="most_frequent")
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore")
        return made.fit(rows, labels)


def _compared(model: Any, clone: Any, labels: bool, table: Table, uniform: np.ndarray) -> dict[str, Any]:
    """In per cent; of a copy of the victim's labels alone without total variation."""
    kept = split(table)[1]
    tests, targets = table.test_rows[kept], table.test_targets[kept]
    errors = extraction_errors(answers_of(model, labels), answers_of(clone, labels), tests, uniform)
    predicted = np.asarray(answers_of(clone, labels)(tests))
    predicted = predicted.argmax(1) if predicted.ndim == 2 else predicted
    metrics = {f"off_{name}": 100 * errors[f"r_{name}"] for name in ("test", "uniform")}
    metrics |= {name: errors[name] for name in ("tv_test", "tv_uniform") if name in errors}
    accuracy = 100 * float((predicted == targets).mean())
    return {
        "accuracy": round(accuracy, 4),
        "agreement": round(100 * (1 - errors["r_test"]), 4),
        "metrics": metrics,
    }


__all__ = [
    "BINARY",
    "KNOWN",
    "SEVERAL",
    "THEFTS",
    "VICTIMS",
    "Sizes",
    "Theft",
    "answers_of",
    "split",
    "stolen",
    "trained",
]
