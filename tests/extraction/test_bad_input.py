"""What goes wrong between an attack and an endpoint is a clear error, and the account stays right."""

import jax
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import BudgetError, InputError
from dfke_jax.extraction import CloneTraining, DFMESettings, PoolAttackSettings, dfme, disagreement, knockoff
from dfke_jax.extraction.disagreement import DisagreementSettings
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Ledger, Metered, Reveal
from dfke_jax.oracle.reveal import check_classes

SHAPE, CLASSES = (4, 4, 1), 3
KEY = jax.random.key(81)
POOL = np.random.default_rng(0).random((24, *SHAPE), np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
GAME = {"steps": 3, "batch_size": 4, "clone_batches": 1, "latent": 3, "width": 2, "schedule": "constant"}
STEPS = 3


def probabilities(rows, classes=CLASSES):
    odds = np.exp(rows.reshape(len(rows), -1) @ WEIGHTS[:, :classes])
    return odds / odds.sum(1, keepdims=True)


class Endpoint:
    """Answers, and spoils the answers of one request."""

    def __init__(self, spoil, at):
        self.spoil, self.at, self.requests = spoil, at, 0

    def __call__(self, rows):
        self.requests += 1
        return self.spoil(rows) if self.requests == self.at else probabilities(rows)


@pytest.fixture(scope="module")
def attacks():
    clone = Classifier.create(MLP(CLASSES, (6,)), jax.random.key(0), SHAPE)
    learn = CloneTraining(4, 3, decay_at=())
    return {
        "knockoff": (knockoff(clone, POOL, Reveal(), PoolAttackSettings(12, 4, 0.0, learn)), 4),
        "dfme": (dfme(clone, DFMESettings(**GAME)), 12),
    }


BAD = {
    "other classes": (lambda rows: probabilities(rows, 5), "of 3 classes"),
    "other rows": (lambda rows: probabilities(rows)[1:], "of 3 classes"),
    "NaN": (lambda rows: probabilities(rows) * np.float32("nan"), "NaN or infinity"),
    "sums": (lambda rows: 0.5 * probabilities(rows), "sum to 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["knockoff", "dfme"])
def test_answers_that_are_none_stop_the_attack_and_cost_one_request(attacks, name, kind):
    """The second request is spoiled: its rows stay of unknown outcome, and the attack goes on where it stopped."""
    (attack, rows), (spoil, match) = attacks[name], BAD[kind]
    ledger = Ledger(budget=STEPS * rows)
    endpoint = Endpoint(spoil, at=2)
    ask = Metered(endpoint, ledger, "victim", Reveal(), num_classes=CLASSES, repeatable=True)
    method = core.against(attack, ask, host=True)
    with pytest.raises(InputError, match=match):
        core.run(method, KEY, STEPS)
    counts = ledger.counts()
    assert (counts["rows"], counts["unique_rows"], counts["unknown_rows"]) == (rows, rows, rows)
    assert ledger.spent == 2 * rows
    resumed = core.run(method, KEY, STEPS).state  # from the beginning: what was answered is replayed
    counts = ledger.counts()
    assert (counts["rows"], counts["unknown_rows"], counts["cache_hits"]) == (STEPS * rows, 0, rows)
    assert endpoint.requests == STEPS + 1
    clean = core.run(core.against(attack, probabilities, host=True), KEY, STEPS).state
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["knockoff", "dfme"])
def test_a_budget_below_one_step_sends_nothing(attacks, name):
    attack, rows = attacks[name]
    ledger, endpoint = Ledger(budget=rows - 1), Endpoint(probabilities, at=0)
    ask = Metered(endpoint, ledger, "victim", Reveal(), num_classes=CLASSES)
    with pytest.raises(BudgetError, match=f"{rows}"):
        core.run(core.against(attack, ask, host=True), KEY, STEPS)
    assert endpoint.requests == ledger.spent == ledger.counts()["requests"] == 0


@pytest.mark.parametrize("name", ["knockoff", "dfme"])
def test_an_endpoint_of_more_classes_than_the_clone_is_refused(attacks, name):
    """Its answers are sound, so they are paid and kept; the attack says what does not fit."""
    attack, rows = attacks[name]
    ledger = Ledger(budget=STEPS * rows)
    ask = Metered(lambda rows: probabilities(rows, 5), ledger, "victim", Reveal(), num_classes=5)
    with pytest.raises(InputError, match=r"clone has 3 classes.*answered shape \(\d+, 5\)"):
        core.run(core.against(attack, ask, host=True), KEY, STEPS)
    assert (ledger.counts()["rows"], ledger.counts()["unknown_rows"]) == (rows, 0)


def test_kinds_of_answers_that_do_not_fit():
    check_classes(np.zeros((4, 3)), Reveal(), 3)
    check_classes(np.zeros(4, np.int32), Reveal("label"), 3)
    for answers, reveal in ((np.zeros(4), Reveal()), (np.zeros((4, 3)), Reveal("label")), (np.zeros((4, 2)), Reveal())):
        with pytest.raises(InputError, match="the clone has 3 classes"):
            check_classes(answers, reveal, 3)


def test_attacks_are_told_how_many_classes_the_victim_has():
    clone = Classifier.create(MLP(CLASSES, (6,)), jax.random.key(0), SHAPE)
    for make, settings in ((dfme, DFMESettings(**GAME)), (disagreement, DisagreementSettings(**GAME))):
        with pytest.raises(InputError, match="victim answers 5 classes and the clone has 3"):
            make(clone, settings, Reveal(), 5)


def test_a_pool_of_another_shape_or_too_small_is_refused_before_any_question():
    clone = Classifier.create(MLP(CLASSES, (6,)), jax.random.key(0), SHAPE)
    for pool, match in ((POOL[:, :3], "4×4×1"), (POOL[..., 0], "4×4×1"), (POOL[:8], "as many images, got 8")):
        with pytest.raises(InputError, match=match):
            knockoff(clone, pool, Reveal(), PoolAttackSettings(12, 4))
