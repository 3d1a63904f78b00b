"""The same attack on a victim in its own program, on a PyTorch module of equal weights, and over HTTP: one result, one account."""

import importlib.util

import jax
import numpy as np
import pytest

from dfke_jax import core, data
from dfke_jax.core.errors import BudgetError
from dfke_jax.extraction import CloneTraining, DFMESettings, PoolAttackSettings, clone_of, dfme, knockoff
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Ledger, Metered, RemoteVictim, Reveal, background, check_spent, create_app, oracle_for

pytestmark = pytest.mark.slow  # attacks, victims on the host and over HTTP have quick tests of their own
KEY = jax.random.key(71)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("httpx", "starlette", "uvicorn")),
    reason="the serve extra is not installed",
)
LEARN = CloneTraining(300, 32, "adam", 3e-3, decay_at=(), temperature=5.0)
GAME = DFMESettings(
    steps=6,
    batch_size=16,
    clone_batches=3,
    latent=8,
    width=4,
    epsilon=0.05,
    clone_optimizer="adam",
    clone_rate=3e-3,
    generator_optimizer="sgd",  # Adam divides what rounding leaves of a vanishing gradient by its own size
    generator_rate=1e-3,
    replay_batches=10,
    replay_capacity=600,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def victim(digits):
    """A network that knows the digits, from a knockoff of the truth: the pool is the training set."""
    network = Classifier.create(MLP(10, (32,)), jax.random.key(1), digits.shape)
    truth = np.eye(10, dtype=np.float32)[digits.train.labels]
    rows = {image.tobytes(): label for image, label in zip(digits.train.images, truth, strict=True)}
    learn = PoolAttackSettings(1400, 1400, 0.0, CloneTraining(600, 32, "adam", 3e-3, decay_at=()))
    attack = knockoff(network, digits.train.images, Reveal(), learn)
    answers = lambda asked: np.stack([rows[row.tobytes()] for row in asked])
    return clone_of(network, core.run(core.against(attack, answers, host=True), KEY, 1).state)


@pytest.fixture(scope="module")
def attacks(digits):
    """Name -> attack, steps, rows that its formula says."""
    clone = Classifier.create(MLP(10, (24,)), jax.random.key(0), digits.shape)
    pool = jax.random.uniform(jax.random.key(2), (500, *digits.shape))
    return clone, {
        "knockoff": (knockoff(clone, pool, Reveal(), PoolAttackSettings(400, 100, 0.0, LEARN)), 4, 400),
        "dfme": (dfme(clone, GAME), 6, 6 * 16 * (3 + 1 + 1)),
    }


@pytest.fixture(scope="module")
def fused(digits, victim, attacks):
    """Name -> accuracy, state and rows of the attack in one program with its victim."""
    clone, table = attacks
    oracle, found = oracle_for(victim), {}
    for name, (attack, steps, rows) in table.items():
        with Ledger(budget=rows) as ledger:
            ledger.reserve(rows)
            state = core.run(core.against(attack, oracle), KEY, steps).state
            ledger.charge(rows)
            check_spent(ledger, rows)
            found[name] = accuracy(clone, state, digits), state, ledger.counts()["rows"]
    return found


def accuracy(clone, state, digits):
    return float((clone_of(clone, state).predict(digits.test.images).argmax(1) == digits.test.labels).mean())


def abroad(attacks, digits, oracle, **options):
    """Name -> accuracy, state and counts of the attack on a victim elsewhere, with a budget of not a row too much."""
    clone, table = attacks
    found = {}
    for name, (attack, steps, rows) in table.items():
        with Ledger(budget=rows) as ledger:
            ask = Metered(oracle, ledger, "victim", batch=50, **options)
            state = core.run(core.against(attack, ask, host=True), KEY, steps).state
            check_spent(ledger, rows)
            with pytest.raises(BudgetError):
                ask(np.full((1, *digits.shape), 0.123, np.float32))
            found[name] = accuracy(clone, state, digits), state, ledger.counts()
    return found


def torch_twin(victim):
    import torch

    params = victim.variables["params"]
    layers = []
    for name in ("dense1", "head"):
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        layer = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(kernel.T))
            layer.bias.copy_(torch.tensor(bias))
        layers.append(layer)
    return torch.nn.Sequential(torch.nn.Flatten(), layers[0], torch.nn.ReLU(), layers[1])


@pytest.fixture(scope="module")
def over_http(victim, attacks, digits):
    oracle, answer = oracle_for(victim), jax.jit(lambda oracle, rows: oracle(rows))
    app = create_app(
        lambda rows: np.asarray(answer(oracle, rows)), input_shape=digits.shape, reveal=Reveal(), num_classes=10
    )
    with background(app) as url:
        endpoint = RemoteVictim(url, batch=50)
        try:
            found = abroad(attacks, digits, endpoint)
        finally:
            endpoint.close()
    return found, sum(app.state.service.accounts.charged.values())


@pytest.fixture(scope="module")
def in_torch(victim, attacks, digits):
    return abroad(attacks, digits, oracle_for(torch_twin(victim), input_shape=digits.shape))


def same(here, there):
    """Accuracies within a point, and the clones' parameters within what rounding makes of equal answers."""
    (ours, our_state, rows), (theirs, their_state, counts) = here, there
    assert abs(ours - theirs) <= 0.01
    assert counts["rows"] == counts["unique_rows"] == counts["budget"] == rows
    assert (counts["unknown_rows"], counts["cache_hits"], counts["evaluation_rows"]) == (0, 0, 0)
    pairs = zip(jax.tree.leaves(our_state.clone.variables), jax.tree.leaves(their_state.clone.variables), strict=True)
    near = [np.isclose(a, b, rtol=5e-2, atol=5e-3).ravel() for a, b in pairs]
    assert np.concatenate(near).mean() > 0.99


def test_the_victim_and_the_attack_on_it_are_worth_comparing(digits, victim, fused):
    assert (victim.predict(digits.test.images).argmax(1) == digits.test.labels).mean() > 0.9
    assert fused["knockoff"][0] > 0.5  # a tenth is chance
    assert fused["knockoff"][2] == 400


@needs_server
@pytest.mark.parametrize("name", ["knockoff", "dfme"])
def test_over_http_it_is_the_same_attack(fused, over_http, name):
    found, _ = over_http
    same(fused[name], found[name])


@needs_server
def test_the_endpoint_charged_what_the_ledgers_counted(over_http):
    found, charged = over_http
    assert charged == sum(counts["rows"] for _, _, counts in found.values())


@needs_torch
@pytest.mark.parametrize("name", ["knockoff", "dfme"])
def test_on_a_pytorch_victim_it_is_the_same_attack(fused, in_torch, name):
    same(fused[name], in_torch[name])


@needs_torch
@needs_server
def test_both_accounts_are_identical(over_http, in_torch):
    for name, (_, _, counts) in over_http[0].items():
        assert in_torch[name][2] == counts, name
