"""Equation solving against models whose weights are known, in this process and over HTTP, counted to the row."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from threadpoolctl import threadpool_limits

from dfke_jax import core
from dfke_jax.extraction import Questions, linear_regression, logistic_regression, softmax_regression
from dfke_jax.extraction.equations import _least_squares
from dfke_jax.oracle import (
    Ledger,
    Metered,
    RemoteVictim,
    Reveal,
    background,
    check_spent,
    create_app,
    oracle_for,
    rows_per_step,
)

needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("httpx", "starlette", "uvicorn")),
    reason="the serve extra is not installed",
)
RNG = np.random.default_rng(5)
WEIGHTS, BIAS = RNG.normal(size=(4, 3)), RNG.normal(size=3)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def digits():
    """A softmax model of digits, its test images, and uniform ones."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    model = LogisticRegression(max_iter=1000).fit(images[:1200], labels[:1200])
    return model, images[1200:], np.random.default_rng(1).uniform(size=(10_000, 64))


def softmax(scores):
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def soft(rows):
    return softmax(rows.reshape(len(rows), -1) @ WEIGHTS + BIAS)


def risk(model, found, rows):
    """(R, largest total variation) between the victim and the copy."""
    ours, theirs = found(rows), model.predict_proba(rows)
    return (ours.argmax(1) != theirs.argmax(1)).mean(), 0.5 * np.abs(ours - theirs).sum(1).max()


def centred(weights):
    return weights - weights.mean(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(64,), (8, 8, 1)])
def test_a_softmax_model_is_stolen_by_as_many_rows_as_it_has_weights_a_class(digits, shape):
    model, images, uniform = digits
    rows = rows_per_step("equation_solving", features=64)
    with Ledger(budget=rows) as ledger:
        ask = Metered(oracle_for(model, input_shape=shape, transport="float64"), ledger)
        solution = core.run_host(softmax_regression(Questions(shape)), ask, 0)
        check_spent(ledger, rows)
        assert ledger.counts()["rows"] == solution.queries == 65
        with pytest.raises(core.BudgetError):
            ask(np.full((1, *shape), 0.123))
    found = solution.found
    assert solution.complete
    assert found.residual is None, "nothing is left that could be compared"
    for points in (images, uniform):
        wrong, variation = risk(model, found, points)
        assert wrong == 0
        assert variation < 1e-9
    np.testing.assert_allclose(found.weights, centred(model.coef_.T), atol=1e-11)
    np.testing.assert_allclose(found.bias, centred(model.intercept_), atol=1e-11)


@needs_server
def test_over_http_it_is_the_same_theft_and_the_same_account(digits):
    model, images, uniform = digits
    here = core.run_host(
        softmax_regression(Questions((64,))), oracle_for(model, input_shape=(64,), transport="float64"), 0
    )
    app = create_app(
        oracle_for(model, input_shape=(64,), transport="float64"),
        input_shape=(64,),
        reveal=Reveal(),
        num_classes=10,
        box=None,
        dtype="float64",
    )
    with background(app) as url, Ledger(budget=65) as ledger, RemoteVictim(url, batch=20) as victim:
        solution = core.run_host(softmax_regression(Questions((64,))), Metered(victim, ledger), 0)
        assert victim.usage()["rows"] == ledger.counts()["rows"] == 65
        far = core.run_host(linear_regression(Questions((64,), box=(-1e3, 1e3))), lambda x: x @ model.coef_.T, 0)
        np.testing.assert_allclose(far.found.weights, model.coef_.T, atol=1e-11)
    np.testing.assert_array_equal(solution.found.weights, here.found.weights)
    assert max(risk(model, solution.found, points)[1] for points in (images, uniform)) < 1e-9


def test_logits_need_no_logarithm():
    questions = Questions(4, 6, box=(-3.0, 5.0))
    logits = lambda rows: rows @ WEIGHTS + BIAS
    found = core.run_host(softmax_regression(questions, Reveal("logits")), logits, 0).found
    np.testing.assert_allclose(found.weights, centred(WEIGHTS), atol=1e-13)
    np.testing.assert_allclose(found.bias, centred(BIAS), atol=1e-13)
    assert found.residual < 1e-13
    single = core.run_host(logistic_regression(questions, Reveal("logits")), lambda x: logits(x)[:, :1], 0).found
    np.testing.assert_allclose(single.weights, WEIGHTS[:, :1], atol=1e-13)


@pytest.mark.parametrize("targets", [1, 3])
def test_a_linear_model_is_found_on_features_of_different_ranges(targets):
    """Ranges over eight orders of magnitude, a feature that is ignored, and one that is there twice."""
    scale = np.array([1e-4, 1.0, 1e4, 3.0, 3.0, 2.0])
    rows = RNG.normal(size=(80, 6)) * scale
    rows[:, 4] = rows[:, 3]
    values = rows @ np.delete(RNG.normal(size=(6, targets)), 5, 0).repeat([1, 1, 1, 1, 2], 0)
    model = LinearRegression().fit(rows, values[:, 0] if targets == 1 else values)
    model.coef_ = np.array(model.coef_)
    model.coef_[..., 5] = 0.0
    questions = Questions(6, box=(-2 * scale, 5 * scale))
    with Ledger(budget=7) as ledger:
        ask = Metered(oracle_for(model, Reveal("logits"), input_shape=(6,), transport="float64"), ledger)
        found = core.run_host(linear_regression(questions), ask, 0).found
        check_spent(ledger, rows_per_step("equation_solving", features=6))
    size = np.abs(values).max()
    np.testing.assert_allclose(found(rows), model.predict(rows).reshape(80, -1), atol=1e-13 * size)
    np.testing.assert_allclose(found.weights[5], 0, atol=1e-13 * size)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_a_logistic_model_is_found_from_either_form_of_its_answers(columns):
    p = lambda rows: 1 / (1 + np.exp(-(rows @ WEIGHTS[:, :1] + BIAS[:1])))
    answer = {0: lambda x: p(x)[:, 0], 1: p, 2: lambda x: np.concatenate([1 - p(x), p(x)], 1)}[columns]
    solution = core.run_host(logistic_regression(Questions(4, 6, box=(-1, 1))), answer, 0)
    np.testing.assert_allclose(solution.found.weights, WEIGHTS[:, :1], atol=1e-11)
    np.testing.assert_allclose(solution.found.bias, BIAS[:1], atol=1e-11)
    assert solution.found.residual < 1e-11
    rows = RNG.uniform(-1, 1, (9, 4))
    np.testing.assert_allclose(solution.found(rows)[:, 1:], p(rows), atol=1e-12)


def test_rows_that_saturate_are_asked_again_nearer_the_middle():
    """Counted: what is asked beyond D + 1 is what a bound must allow."""
    asked = []

    def answer(rows):
        asked.append(rows)
        return soft(100 * rows)

    with Ledger(budget=40) as ledger:
        ask = Metered(answer, ledger, "v", Reveal(), num_classes=3)
        solution = core.run_host(softmax_regression(Questions(4, 6, box=(-9, 9))), ask, 0)
        check_spent(ledger, 40, at_most=True)
        spent = {name: counts["rows"] for name, counts in ledger.phases().items()}
    assert spent == {"equations": 5, "nearer": solution.queries - 6, "further": 1}
    np.testing.assert_allclose(solution.found.weights, centred(100 * WEIGHTS), rtol=1e-9)
    assert len(asked[0]) == 5
    assert sum(len(rows) for rows in asked) == solution.queries > 6
    halved = [row for row in asked[1] if any(np.allclose(2 * row, first) for first in asked[0])]
    assert len(halved) == len(asked[1])
    one_hot = lambda rows: np.eye(3)[(rows @ WEIGHTS).argmax(1)]
    with pytest.raises(core.InputError, match="zero, whose logarithm"):
        core.run_host(softmax_regression(Questions(4, box=(-9, 9))), one_hot, 0)


def test_rounded_answers_are_averaged(digits):
    """Four decimals: D + 1 rows are a fragile theft, five times as many a good one."""
    model, images, uniform = digits
    reveal, found = Reveal(decimals=4), {}
    for rows in (65, 325):
        with Ledger(budget=rows) as ledger:
            ask = Metered(oracle_for(model, reveal, input_shape=(64,), transport="float64"), ledger)
            found[rows] = core.run_host(softmax_regression(Questions((64,), rows), reveal), ask, 0).found
            check_spent(ledger, rows_per_step("equation_solving", features=64, extra=rows - 65))
    wrong, variation = risk(model, found[325], images)
    assert wrong == 0
    assert variation < 4e-3
    assert risk(model, found[325], uniform)[0] <= 5e-4
    assert risk(model, found[325], uniform)[1] < 0.5 * risk(model, found[65], uniform)[1]


def test_rounded_answers_are_worth_more_than_plain_least_squares():
    """A binary model to three decimals over many seeds, and logits to one."""
    reveal, errors = Reveal("logits", decimals=1), []
    p = lambda rows: 1 / (1 + np.exp(-(rows @ (3 * WEIGHTS[:, :1]))))
    answer = lambda rows: np.round(np.concatenate([1 - p(rows), p(rows)], 1), 3)
    for seed in range(20):
        questions = Questions(4, 40, box=(-2, 2))
        found = core.run_host(logistic_regression(questions, Reveal(decimals=3)), answer, seed).found
        rng = np.random.default_rng(seed)
        rows = np.concatenate([questions.first(rng), questions.further(rng)])
        half = np.clip(answer(rows), 5e-4, None)
        plain = np.linalg.lstsq(
            np.concatenate([np.ones((40, 1)), rows], 1), np.log(half[:, 1] / half[:, 0]), rcond=None
        )[0]
        truth = 3 * WEIGHTS[:, 0]
        errors.append((np.abs(found.weights[:, 0] - truth).max(), np.abs(plain[1:] - truth).max()))
    ours, plain = np.mean(errors, 0)
    assert ours < 0.2 * plain
    values = lambda rows: np.round(rows @ WEIGHTS + BIAS, 1)
    rounded = core.run_host(linear_regression(Questions(4, 2000, box=(-9, 9)), decimals=1), values, 0).found
    np.testing.assert_allclose(rounded.weights, WEIGHTS, atol=2e-3)
    with pytest.raises(core.InputError, match="rounding explains"):
        core.run_host(softmax_regression(Questions(4, 6, box=(-9, 9)), Reveal("logits")), values, 0)
    assert core.run_host(softmax_regression(Questions(4, 6, box=(-9, 9)), reveal), values, 0).complete


def clipped(rows):
    return soft(np.clip(rows, 0, 1))


def single(rows):
    return soft(rows.astype(np.float32).astype(np.float64))


def ensemble(rows):
    return (soft(rows) + soft(-rows)) / 2


def test_equations_are_weighted_by_what_rounding_may_have_moved_them():
    """Against the normal equations; unknown ones are left out, and no rounding exceeds what is said to explain it."""
    matrix, values = RNG.normal(size=(12, 3)), RNG.normal(size=12)
    moved = 10.0 ** RNG.uniform(-3, 1, 12)
    moved[[2, 7]] = np.inf
    solution, _, explained = _least_squares(matrix, values, moved)
    weighted = matrix.T / moved**2
    np.testing.assert_allclose(solution, np.linalg.solve(weighted @ matrix, weighted @ values), rtol=1e-10)
    known = np.isfinite(moved)
    exact, corners = matrix @ np.array([1.0, -2.0, 3.0]), RNG.choice([-1.0, 1.0], size=(300, 12))
    found = [_least_squares(matrix, exact + corner * np.where(known, moved, 9.0), moved)[1] for corner in corners]
    assert (np.max(found, 0) <= explained).all()
    assert (np.max(found, 0) > 0.5 * explained).any(), "the bound is no loose one"
    assert _least_squares(matrix[:4], values[:4], np.array([1, np.inf, np.inf, 1])) is None


def test_rounded_answers_end_at_the_least_cross_entropy():
    """Two decimals, and a class that comes back as zero nearly everywhere: its gradient there, by hand, vanishes."""
    asked, bias = [], BIAS - np.array([0.0, 0.0, 6.0])
    questions = Questions(4, 60, box=(-1, 1))

    def answer(rows):
        asked.extend(rows)
        return np.round(softmax(rows @ WEIGHTS + bias), 2)

    found = core.run_host(softmax_regression(questions, Reveal(decimals=2)), answer, 0).found
    rows = np.stack(asked)
    answers = answer(rows)
    assert 0 < (answers[:, 2] > 0).sum() < 60
    gradient = questions.matrix(rows).T @ (found(rows) - answers / answers.sum(1, keepdims=True))
    assert np.abs(gradient).max() < 1e-4


WRONG = {
    "labels": (lambda rows: soft(rows).argmax(1), "labels"),
    "one half": (lambda rows: np.full((len(rows), 2), 0.5), "all 5 answers are equal"),
    "constant": (lambda rows: np.full((len(rows), 3), 1 / 3), "all 5 answers are equal"),
    "clipped": (clipped, "clips or quantises"),
    "eight bits": (lambda rows: soft(np.round(rows * 255) / 255), "clips or quantises"),
    "rounded": (lambda rows: np.round(soft(rows), 6), "rounds or changes"),
    "noise": (lambda rows: softmax(np.log(soft(rows)) + 1e-6 * RNG.normal(size=(len(rows), 3))), "rounds or changes"),
    "another model": (ensemble, "another model"),
    "float32 answers": (lambda rows: soft(rows).astype(np.float32), r"seven digits: .*transport='float64'"),
    "float32 as float64": (lambda rows: soft(rows).astype(np.float32).astype(float), "seven digits, as float64"),
    "float32 rows": (single, "float32: use transport='float64' throughout"),
    "one class": (lambda rows: soft(rows)[:, :1], "logistic_regression"),
    "no probabilities": (lambda rows: 2 * soft(rows), "sum to 1"),
    "not finite": (lambda rows: soft(rows) * np.nan, "NaN"),
    "another number of rows": (lambda rows: soft(rows)[1:], "asked 5 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_no_equations_are_told_apart(name):
    """One row beyond D + 1 is enough for all of them."""
    answer, message = WRONG[name]
    with pytest.raises(core.InputError, match=message):
        core.run_host(softmax_regression(Questions(4, 6, box=(-2, 2))), answer, 0)


def test_what_is_no_equation_is_refused_before_anything_is_asked():
    for reveal in (Reveal("label"), Reveal("top_k", k=2)):
        for attack in (softmax_regression, logistic_regression):
            with pytest.raises(core.InputError, match="hides them"):
                attack(Questions(4), reveal)
    line = np.outer(np.arange(6.0), np.ones(4))
    for arguments, message in (
        ({"shape": 4, "rows": 4}, "at least 5 rows, got 4"),
        ({"shape": (4, 0)}, "shape must be"),
        ({"shape": 2, "box": (0, [1, 0])}, r"features \[1\] have no range"),
        ({"shape": 2, "box": (0, [1, 1, 1])}, "arrays of shape"),
        ({"shape": 2, "box": (0, np.inf)}, "no range"),
        ({"shape": 4, "points": line}, "span 2 of 5 dimensions"),
        ({"shape": 4, "points": line[:4]}, "at least 5 rows"),
        ({"shape": 4, "points": np.ones((6, 3))}, r"finite numbers \(N, 4\)"),
        ({"shape": 4, "points": np.ones((6, 4)), "rows": 7}, "6 points are given and 7"),
        ({"shape": 4, "precision": "float16"}, "float16"),
    ):
        with pytest.raises(core.InputError, match=message):
            Questions(**arguments)


def test_in_single_precision_seven_digits_are_found():
    questions = Questions(4, 6, box=(-2, 2), precision="float32")
    seen = []

    def answer(rows):
        seen.append(rows.dtype)
        return soft(rows.astype(np.float64)).astype(np.float32)

    found = core.run_host(softmax_regression(questions), answer, 0).found
    assert set(seen) == {np.dtype(np.float32)}
    np.testing.assert_allclose(found.weights, centred(WEIGHTS), atol=1e-5)
    with pytest.raises(core.InputError, match="clips"):
        core.run_host(softmax_regression(questions), lambda rows: clipped(rows).astype(np.float32), 0)


def test_rows_are_a_regular_simplex_in_the_box():
    for features in (1, 2, 64):
        questions = Questions(features, box=(-3.0, 1.0))
        rows = questions.first(np.random.default_rng(0))
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)[~np.eye(features + 1, dtype=bool)]
        np.testing.assert_allclose(distances, distances[0], rtol=1e-7)
        assert rows.min() >= -3
        assert rows.max() <= 1
        np.testing.assert_allclose(np.abs(rows + 1).max(), 2, rtol=1e-9)
        assert np.linalg.cond(questions.matrix(rows)) < 5
        assert features == 1 or not np.array_equal(rows, questions.first(np.random.default_rng(1)))


def test_points_of_ones_own_are_asked():
    points = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    asked = []
    found = core.run_host(
        softmax_regression(Questions(4, points=points)), lambda x: asked.append(x) or soft(x), 0
    ).found
    np.testing.assert_array_equal(asked[0], points)
    np.testing.assert_allclose(found.weights, centred(WEIGHTS), atol=1e-13)


def test_a_budget_that_ends_early_leaves_the_unchecked_model():
    with Ledger(budget=5) as ledger:
        ask = Metered(soft, ledger, "v", Reveal(), num_classes=3)
        solution = core.run_host(softmax_regression(Questions(4, 9)), ask, 0)
    assert (solution.complete, solution.queries) == (False, 5)
    np.testing.assert_allclose(solution.found.weights, centred(WEIGHTS), atol=1e-12)
    assert solution.found.residual is None


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "extraction.md").read_text()
    code = re.search(r"## Exact attacks on the host\n.*?```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "extraction.md", "exec"), {})
    printed = capsys.readouterr().out.split()
    assert printed[:3] == ["True", "66", "0"]
    assert float(printed[3]) < 1e-9
