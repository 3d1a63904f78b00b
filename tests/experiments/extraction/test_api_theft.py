"""The theft through a prediction API: counted and priced, and said as it is."""

import contextlib
import types

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from dfke_jax import data, report
from dfke_jax.core.errors import InputError
from dfke_jax.experiments import recipe
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.extraction import api_theft
from dfke_jax.oracle import Ledger


def fake_run(tmp_path, **changes):
    """What `_steal_softmax` needs of a run, and what it entered."""
    config = recipe("api-theft").settings("digits", **{"seeds": 2, "learning_steps": 50, **changes})
    entered = {}

    def enter(arm, metrics=None, **more):
        entered[arm] = {**(metrics or {}), **more}

    run = types.SimpleNamespace(
        config=config, seed=1, dataset=data.load("digits"), bench=types.SimpleNamespace(out=tmp_path),
        clock=lambda kind: contextlib.nullcontext(), enter=enter,
    )  # fmt: skip
    return run, entered


def test_a_softmax_regression_is_stolen_to_the_bit_for_its_price(tmp_path):
    run, entered = fake_run(tmp_path, budget=65, price=2.0)
    api_theft._steal_softmax(run)
    stolen, control = entered["softmax"], entered["softmax_control"]
    assert stolen["budget"] == {"victim_rows": 65}
    assert stolen["dollars"] == entered["softmax_control"]["dollars"] == 0.13, "2 dollars for a thousand"
    assert "dollars" not in entered["softmax_independent"]
    assert (stolen["agreement"], stolen["agreement_uniform"], stolen["same_bits"]) == (100, 100, 100)
    assert stolen["log10_error"] < -10
    assert stolen["accuracy"] == entered["softmax_victim"]["accuracy"] > 90
    assert control["agreement"] < 100
    assert control["budget"]["victim_rows"] == 65
    assert 90 < entered["softmax_independent"]["agreement"] < 100
    with Ledger(tmp_path / "ledgers" / "seed1" / "softmax.sqlite") as ledger:
        assert ledger.counts()["rows"] == 65


def test_a_budget_that_is_too_small_is_said(tmp_path):
    run, _ = fake_run(tmp_path, budget=64)
    with pytest.raises(InputError, match="64 rows were not enough to steal the softmax"):
        api_theft._steal_softmax(run)
    with pytest.raises(InputError, match="price not negative"):
        recipe("api-theft").settings("digits", price=-1.0)


def test_learning_by_steps_goes_to_the_least_cross_entropy():
    rng = np.random.default_rng(0)
    rows, answers = rng.random((30, 4)), rng.dirichlet(np.ones(3), 30)

    def loss(flat):
        weights = flat.reshape(5, 3)
        return -(answers * scipy.special.log_softmax(rows @ weights[1:] + weights[0], 1)).sum(1).mean()

    least = scipy.optimize.minimize(loss, np.zeros(15)).fun
    reached = [
        -(answers * np.log(api_theft._by_steps(rows, answers, steps)(rows))).sum(1).mean() for steps in (0, 20, 3000)
    ]
    assert reached[0] == pytest.approx(np.log(3))
    assert reached[0] > reached[1] > least
    assert reached[2] == pytest.approx(least, abs=1e-4)


def stolen(agreement, control):
    metrics = {"log10_error": [-12.3, -11.0], "same_bits": [100.0, 100.0], "dollars": [0.1065, 0.11]}
    place, paid = {"victim": "Softmax regression"}, {"dollars": [0.0065, 0.0065]}
    arms = [
        Arm("teacher", "Victim: network", "teacher", [97.0, 96.0]),
        Arm("softmax", "Softmax regression, solved", "method", [96.0, 95.0], agreement, {"victim_rows": 1065}, metrics,
            factors=place),
        Arm("softmax_control", "Softmax regression, learnt", "control", [90.0, 91.0], control, {"victim_rows": 65},
            paid, factors=place),
        Arm("softmax_independent", "Softmax regression, trained likewise", "anchor", [96.0, 95.0], [97.0, 98.0],
            {"real_samples": 9}, factors=place),
    ]  # fmt: skip
    return Result("api-theft", "Theft", "digits", {"price": 0.1}, [0, 1], arms, [], {"total": 1.0}, {})


def test_the_bill_and_the_verdict():
    result = stolen([100.0, 100.0], [90.0, 95.0])
    (row,) = api_theft.theft_table(result).rows
    assert row == ("Softmax regression, solved", "1,065", "$0.1065", "100.0 ± 0.0", "92.5 ± 3.5", "1e-11", "100.00")
    (sentence,) = report.verdict(result)
    assert "1,065 rows for $0.1065 give a copy that agrees with its victim on 100.00 ± 0.00 %" in sentence
    assert "no probability further off than 1e-11: bit for bit in float32" in sentence
    assert "+7.50 points over Softmax regression, learnt (92.50 ± 3.54 %), better on every seed" in sentence
    result.arms[1].metrics["same_bits"] = [100.0, 99.99]
    assert "bit for bit" not in report.verdict(result)[0]
    assert (
        "no better than Softmax regression, learnt (100.00 ± 0.00 %): −1.00 points, worse on every seed"
        in (report.verdict(stolen([99.0, 99.0], [100.0, 100.0]))[0])
    )


def test_the_bill_fits_a_terminal_and_the_figure_shows_everyone():
    from rich.console import Console

    result = stolen([100.0, 100.0], [90.0, 95.0])
    with open("/dev/null", "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(report.table(result))
    shown = " ".join(console.export_text().split())
    for piece in ("Softmax", "solved", "1,065", "$0.1065", "100.0 ± 0.0", "92.5 ± 3.5", "1e-11"):
        assert piece in shown
    assert "…" not in shown
    (axes,) = api_theft.theft_figure(result).axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks[0] == "Softmax regression, solved\n1,065 rows, \\$0.1065"
    assert len(ticks) == 3
    result.arms = result.arms[:1]
    with pytest.raises(InputError, match="no theft to draw"):
        api_theft.theft_figure(result)
