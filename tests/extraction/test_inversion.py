"""Rows that a model is sure of, from an extracted model and by asking."""

import numpy as np
import pytest
import scipy.special

from dfke_jax import core
from dfke_jax.data import Schema
from dfke_jax.extraction import (
    AffineModel,
    FittedModel,
    InversionSettings,
    Questions,
    inverted,
    log_probabilities,
    queried_inversion,
    softmax_regression,
)
from dfke_jax.extraction.cross_entropy import hidden_layer_logs
from dfke_jax.oracle import Ledger, Metered

SCHEMA = Schema.of_numbers(5)
RNG = np.random.default_rng(0)
WEIGHTS, BIAS = RNG.normal(size=(5, 3)), RNG.normal(size=3)
SETTINGS = InversionSettings(steps=40, rate=0.1, confidence=0.9)


def softmax(rows):
    return scipy.special.softmax(rows @ WEIGHTS + BIAS, 1)


def ascended(classes, settings=SETTINGS):
    """The ascent written out, with the gradient of log p_k of a softmax model: w_k − Σ_j p_j w_j."""
    found = []
    for k in classes:
        row = np.zeros(5)
        for _ in range(settings.steps):
            p = softmax(row[None])[0]
            if p[k] >= settings.confidence:
                break
            slope = WEIGHTS[:, k] - WEIGHTS @ p
            row = np.clip(row + settings.rate * slope / np.linalg.norm(slope), -1, 1)
        found.append(row)
    return np.stack(found)


def test_both_ways_are_the_ascent_written_out():
    extracted = core.run_host(softmax_regression(Questions(5, box=(-1, 1))), softmax, 0)
    rows = inverted(log_probabilities(extracted.found), SCHEMA, range(3), SETTINGS)
    np.testing.assert_allclose(rows, ascended(range(3)), atol=1e-6)
    with Ledger() as ledger:
        asked = core.run_host(queried_inversion(SCHEMA, range(3), SETTINGS), Metered(softmax, ledger, "v", "p"), 0)
        assert asked.queries == ledger.phases()["inversion"]["rows"] + ledger.phases()["inversion"]["cache_hits"]
    np.testing.assert_allclose(asked.found, rows, atol=1e-3)
    assert asked.queries % 6 == 0
    assert extracted.queries == 6 < asked.queries
    budget = core.run_host(queried_inversion(SCHEMA, [1], SETTINGS), Metered(softmax, Ledger(budget=13), "v", "p"), 0)
    assert not budget.complete
    assert budget.queries == 12


def test_models_of_every_form_have_log_probabilities():
    rows = SCHEMA.uniform(np.random.default_rng(1), 4)
    logistic = AffineModel(WEIGHTS[:, :1], BIAS[:1], "logistic")
    np.testing.assert_allclose(np.exp(log_probabilities(logistic)(rows)), logistic(rows), atol=1e-5)
    parameters = {"weights": WEIGHTS, "bias": BIAS, "last_weights": WEIGHTS[:3], "last_bias": BIAS}
    network = FittedModel(parameters, hidden_layer_logs)
    np.testing.assert_allclose(np.exp(log_probabilities(network)(rows)), network(rows), atol=1e-5)
    with pytest.raises(core.InputError, match="no classes"):
        log_probabilities(AffineModel(WEIGHTS, BIAS, "identity"))


def test_bad_input_is_refused():
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"confidence": 1.5}, {"difference": 0.0}):
        with pytest.raises(core.InputError, match="steps must be"):
            InversionSettings(**wrong)
    with pytest.raises(core.InputError, match="were expected"):
        core.run_host(queried_inversion(SCHEMA, [0]), lambda rows: np.zeros(len(rows), int), 0)
