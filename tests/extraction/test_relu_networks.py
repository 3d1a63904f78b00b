"""Two-layer ReLU networks: every number against the victim's own weights."""

import numpy as np
import pytest

from dfke_jax import core, data
from dfke_jax.core.errors import InputError, MissingDataError
from dfke_jax.core.method import HostAttack
from dfke_jax.extraction import (
    ReluNetwork,
    ReluSearch,
    gradient_network,
    hybrid,
    refined,
    relu_network,
    relu_refinement,
    second_differences,
    widened,
)
from dfke_jax.extraction.piecewise_linear import Line, find_pieces, measure_rounding
from dfke_jax.oracle import Ledger, Metered, Reveal, from_function, oracle_for

D, H, K = 6, 5, 4


class Network:
    """A victim, its weights and its gradients, in NumPy."""

    def __init__(self, features=D, neurons=H, outputs=K, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(features, neurons)) / np.sqrt(features)
        self.bias = 0.3 * rng.normal(size=neurons)
        self.output = rng.normal(size=(neurons, outputs)) / np.sqrt(neurons)
        self.constant = rng.normal(size=outputs)

    def __call__(self, rows):
        rows = rows.reshape(len(rows), -1)
        return np.maximum(rows @ self.weights + self.bias, 0) @ self.output + self.constant

    def probabilities(self, rows):
        values = self(rows)
        odds = np.exp(values - values.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def gradients(self, rows):
        on = (rows @ self.weights + self.bias > 0).astype(float)
        return np.einsum("nh,dh,hk->nkd", on, self.weights, self.output)


def unseen(features=D):
    return np.random.default_rng(9).random((500, features))


def centred(values):
    return values - values.mean(1, keepdims=True)


def test_every_neuron_is_found_up_to_order_and_scale():
    victim = Network()
    found = core.run_host(relu_network(ReluSearch(D)), victim, 0).found
    assert found.skip is None
    size = np.linalg.norm(victim.weights, axis=0)
    cosines = (victim.weights / size).T @ found.weights
    match = cosines.argmax(1)
    assert sorted(match) == list(range(H))
    np.testing.assert_allclose(cosines.max(1), 1, atol=1e-12)  # so that none stands the wrong way round
    np.testing.assert_allclose(found.bias[match], victim.bias / size, atol=1e-8)
    np.testing.assert_allclose(found.output[match], victim.output * size[:, None], atol=1e-8)
    np.testing.assert_allclose(found.constant, victim.constant, atol=1e-7)
    far = 50 * np.random.default_rng(1).normal(size=(200, D))
    np.testing.assert_allclose(found(far), victim(far), atol=1e-6)


@pytest.mark.parametrize(("neurons", "outputs"), [(5, 1), (9, 1), (9, 2), (1, 3)])
def test_outputs_of_any_number(neurons, outputs):
    victim = Network(D, neurons, outputs, seed=2)
    found = core.run_host(relu_network(ReluSearch(D)), victim, 0).found
    assert len(found.bias) == neurons
    np.testing.assert_allclose(found(unseen()), victim(unseen()), atol=1e-6)
    if neurons > D * outputs:  # more unknown orientations than equations for them: the affine form
        assert found.skip is not None


def test_an_image_is_a_row_and_pixels_that_count_for_nothing_are_found_to():
    victim = Network(12)
    victim.weights[[0, 7]] = 0
    found = core.run_host(relu_network(ReluSearch((2, 3, 2))), victim, 0).found
    np.testing.assert_allclose(found.weights[[0, 7]], 0, atol=1e-9)
    rows = np.random.default_rng(3).random((50, 2, 3, 2))
    np.testing.assert_allclose(found(rows), victim(rows), atol=1e-7)


@pytest.mark.parametrize("gives", ["probabilities", "log_probabilities"])
def test_probabilities_and_their_logarithms(gives):
    victim = Network(D, 8, 3, seed=4)

    def logarithms(rows):  # by a log-softmax, also where a probability would be zero
        values = victim(rows) - victim(rows).max(1, keepdims=True)
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    answer = victim.probabilities if gives == "probabilities" else logarithms
    found = core.run_host(relu_network(ReluSearch(D, gives=gives)), answer, 0).found
    assert len(found.bias) == 8
    np.testing.assert_allclose(found(unseen()), centred(victim(unseen())), atol=1e-6)


def test_rows_stay_in_the_box_where_they_must():
    victim = Network(seed=5)

    def answer(rows):
        assert rows.min() >= -1e-12
        assert rows.max() <= 1 + 1e-12
        return victim(np.clip(rows, 0, 1))

    found = core.run_host(relu_network(ReluSearch(D, inside=True)), answer, 0).found
    np.testing.assert_allclose(found(unseen()), victim(unseen()), atol=1e-7)


def test_a_neuron_that_random_chords_miss_is_found_by_the_rows_that_show_it():
    """It is active in a corner that holds half a per cent of such rows."""
    rng = np.random.default_rng(3)
    victim = Network(features=12, neurons=12, outputs=3)
    victim.weights, victim.bias = rng.normal(size=(12, 12)) / np.sqrt(12), 0.3 * rng.normal(size=12)
    victim.bias -= victim.weights.sum(0) / 2
    victim.output = rng.normal(size=(12, 3)) / np.sqrt(12)
    corner = np.sign(rng.normal(size=12))
    victim.weights[:, 0], victim.bias[0] = corner, 3 - np.maximum(corner, 0).sum()
    victim.output[0] *= 3
    found = core.run_host(relu_network(ReluSearch(12, inside=True)), victim, 3).found
    rows = rng.random((20_000, 12))
    rows[::2] = rows[::2] < rng.random((10_000, 1))
    on = rows @ victim.weights[:, 0] + victim.bias[0] > 0
    assert 20 < on.sum() < 400
    assert len(found.bias) == 12
    np.testing.assert_allclose(found(rows), victim(rows), atol=1e-7)


def without_neurons(victim, count):
    """The network as it is found when some of its neurons are missed."""
    kept = slice(count, None)
    size = np.linalg.norm(victim.weights[:, kept], axis=0)
    output = victim.output[kept] * size[:, None]
    return ReluNetwork(victim.weights[:, kept] / size, victim.bias[kept] / size, output, None, victim.constant, 1.0)


def test_missed_neurons_are_learnt_on_top_of_those_found(monkeypatch):
    victim = Network(neurons=8, outputs=3, seed=3)
    victim.bias -= victim.weights.sum(0) / 2
    partial, rng = without_neurons(victim, 2), np.random.default_rng(0)
    rows = rng.random((400, D))
    wide = widened(partial, 6, rows, rng)
    np.testing.assert_allclose(wide(rows), partial(rows), atol=1e-12)
    assert wide.weights.shape == (D, 12)
    assert np.min(np.abs(rows @ wide.weights[:, 6:] + wide.bias[6:]), 0).max() < 1e-12

    def missing(search):
        def solve(rng, ask):
            ask.keep(partial)
            raise InputError("two neurons are missing")

        return HostAttack(solve)

    monkeypatch.setattr(relu_refinement, "relu_network", missing)
    with pytest.raises(InputError, match="two neurons"):
        core.run_host(hybrid(ReluSearch(D), 400), victim, 0)
    found = core.run_host(hybrid(ReluSearch(D), 400, missing=6, steps=300), victim, 0).found
    alone = refined(partial, rows, victim(rows), steps=300)
    errors = [np.sqrt(np.mean((one(unseen()) - victim(unseen())) ** 2)) for one in (partial, alone, found)]
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    with pytest.raises(InputError, match="at least 1"):
        widened(partial, 0, rows, rng)


def test_through_oracle_and_ledger_it_costs_what_its_phases_say():
    victim = Network()
    host = from_function(victim, (D,), K, gives="logits", repeatable=True)
    oracle = oracle_for(host, Reveal("logits"), transport="float64")
    with Ledger() as ledger:
        metered = Metered(oracle, ledger)
        solution = core.run_host(relu_network(ReluSearch(D)), metered, 0)
        phases = {name: counts["rows"] for name, counts in ledger.phases().items()}
    assert sum(phases.values()) == solution.queries
    assert phases["rounding"] == 27
    assert phases["check"] == 128
    # five neurons, two a jump of gradients: three blocks or so
    assert phases["gradients"] in [(D + 1) * n for n in range(3, H + 2)]


def test_the_baseline_finds_the_same_and_pays_more():
    victim = Network(20, 6, 3)
    ours, theirs = (core.run_host(attack(ReluSearch(20)), victim, 0) for attack in (relu_network, second_differences))
    rows = unseen(20)
    np.testing.assert_allclose(theirs.found(rows), victim(rows), atol=1e-7)
    np.testing.assert_allclose(ours.found(rows), theirs.found(rows), atol=1e-7)
    assert theirs.found.skip is None
    assert ours.queries < theirs.queries


def test_the_baseline_reads_the_outputs_of_neurons_that_are_off_about_the_box():
    """There every row lies on one side of their hyperplanes; far out they count."""
    victim = Network()
    victim.bias[:2] = -25.0
    found = core.run_host(second_differences(ReluSearch(D)), victim, 0).found
    rows = 60 * np.random.default_rng(1).normal(size=(500, D))
    assert (rows @ victim.weights[:, :2] + victim.bias[:2] > 0).any(0).all()
    assert not (unseen() @ victim.weights[:, :2] + victim.bias[:2] > 0).any()
    np.testing.assert_allclose(found(rows), victim(rows), atol=1e-6)


def test_the_baseline_says_that_more_neurons_than_features_have_no_common_point():
    with pytest.raises(InputError, match="9 neurons of 6 features"):
        core.run_host(second_differences(ReluSearch(D)), Network(neurons=9), 0)
    with pytest.raises(InputError, match="logits in float64"):
        second_differences(ReluSearch(D, gives="probabilities"))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("predicted", [True, False])
def test_gradients_are_asked_a_number_of_times_that_does_not_depend_on_the_features(predicted, outputs):
    spent = []
    for features in (4, 40):
        victim = Network(features, 4, outputs)
        attack = gradient_network(ReluSearch(features), predicted=predicted)
        solution = core.run_host(attack, lambda rows, of=victim: (of(rows), of.gradients(rows)), 0)
        np.testing.assert_allclose(solution.found(unseen(features)), victim(unseen(features)), atol=1e-12)
        spent.append(solution.queries - 128)
    assert max(spent) < (40 if predicted else 200)


def test_gradients_of_probabilities_do_as_well():
    victim = Network(outputs=3)

    def explained(rows):
        p, gradients = victim.probabilities(rows), victim.gradients(rows)
        return p, p[..., None] * (gradients - np.einsum("nk,nkd->nd", p, gradients)[:, None])

    found = core.run_host(gradient_network(ReluSearch(D, gives="probabilities")), explained, 0).found
    np.testing.assert_allclose(found(unseen()), centred(victim(unseen())), atol=1e-12)


def test_learning_takes_over_where_float32_ends():
    victim = Network(outputs=3)
    single = lambda rows: victim(rows).astype(np.float32)
    search = ReluSearch(D, precision="float32")
    rough = core.run_host(relu_network(search), single, 0).found
    fitted = core.run_host(hybrid(search, 200, steps=60), single, 0).found
    errors = [np.abs(found(unseen()) - victim(unseen())).max() for found in (rough, fitted)]
    assert errors[1] < errors[0] < 1e-2
    with pytest.raises(InputError, match="need answers"):
        refined(rough, unseen(), np.zeros((500, 2)))


VICTIM = Network()
WRONG = {
    "float32": (lambda rows: VICTIM(rows).astype(np.float32), "float32's seven digits"),
    "float32 inside": (lambda rows: VICTIM(rows.astype(np.float32)) * 1.1, "answers in float32"),
    "clips": (lambda rows: VICTIM(np.clip(rows, 0, 1)), "clips its rows"),
    "quantises": (lambda rows: VICTIM(np.round(255 * rows) / 255), "quantises its rows"),
    "constant": (lambda rows: np.full((len(rows), K), 0.3), "constant"),
    "labels": (lambda rows: VICTIM(rows).argmax(1), "labels"),
    "smooth": (lambda rows: np.logaddexp(0, rows @ VICTIM.weights) @ VICTIM.output, "."),
    "three layers": (lambda rows: np.maximum(VICTIM(rows), 0) @ VICTIM.output[:K], "."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_network_is_said(name):
    answer, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        core.run_host(relu_network(ReluSearch(D, most_neurons=64)), answer, 0)


def test_settings_that_mean_nothing():
    for wrong in (
        {"shape": 0}, {"shape": D, "gives": "labels"}, {"shape": D, "box": (1, 0)},
        {"shape": D, "tolerance": 0},
        {"shape": D, "neurons_per_jump": 0}, {"shape": D, "precision": "float16"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ReluSearch(**wrong)


@pytest.mark.parametrize("outputs", [1, 3])
def test_critical_points_are_those_of_the_weights(outputs):
    victim = Network(D, 30, outputs)
    rng = np.random.default_rng(0)
    lines = [Line.unlimited(rng.random(D), way / np.linalg.norm(way), 1.0) for way in rng.normal(size=(3, D))]
    rounding = measure_rounding(victim, lines[0])
    for line, pieces in zip(lines, find_pieces(victim, lines, rounding, most=100), strict=True):
        across = line.direction @ victim.weights
        places = -(line.start @ victim.weights + victim.bias) / across
        order = np.argsort(places)
        np.testing.assert_allclose(pieces.places, places[order], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(pieces.jumps, (np.abs(across)[:, None] * victim.output)[order], atol=1e-8)


def mnist_network(neurons, outputs):
    """A 784-h-10 network trained on MNIST (784-h-1: odd or even), and the test images."""
    import jax
    import jax.numpy as jnp
    import optax

    try:
        mnist = data.load("mnist")
    except MissingDataError:
        pytest.skip("MNIST is not there")
    images, labels = mnist.train.images.reshape(-1, 784), np.asarray(mnist.train.labels)
    rng = np.random.default_rng(neurons)
    start = Network(784, neurons, outputs, seed=neurons)
    parameters = [jnp.asarray(p, jnp.float32) for p in (start.weights, start.bias, start.output, start.constant)]
    optimizer = optax.adam(1e-3)

    def loss(parameters, x, y):
        weights, bias, output, constant = parameters
        values = jax.nn.relu(x @ weights + bias[None]) @ output + constant[None]
        if outputs == 1:
            return optax.sigmoid_binary_cross_entropy(values[:, 0], (y % 2).astype(jnp.float32)).mean()
        return optax.softmax_cross_entropy_with_integer_labels(values, y).mean()

    @jax.jit
    def step(parameters, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(parameters, x, y), state)
        return optax.apply_updates(parameters, updates), state

    state = optimizer.init(parameters)
    for _ in range(600):
        rows = rng.integers(0, len(images), 128)
        parameters, state = step(parameters, state, np.float32(images[rows] / 255), labels[rows])
    start.weights, start.bias, start.output, start.constant = (np.asarray(p, np.float64) for p in parameters)
    return start, mnist.test.images.reshape(-1, 784) / 255.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("neurons", "outputs", "published"),
    [(32, 10, 150_000), (64, 10, 300_000), (128, 10, 600_000), (32, 1, 150_000), (128, 1, 600_000)],
)
@pytest.mark.parametrize("gives", ["logits", "probabilities"])
def test_networks_trained_on_mnist_are_copied_to_the_last_label(neurons, outputs, published, gives):
    if outputs == 1 and gives == "probabilities":
        pytest.skip("one output has no probabilities of classes")
    victim, images = mnist_network(neurons, outputs)
    answer = victim if gives == "logits" else victim.probabilities
    solution = core.run_host(relu_network(ReluSearch(784, gives=gives)), answer, 0)
    ours, theirs = solution.found(images), victim(images)
    theirs = theirs if gives == "logits" else centred(theirs)
    assert solution.queries < published
    assert np.abs(ours - theirs).max() < 1e-4
    label = (lambda values: values.argmax(1)) if outputs > 1 else (lambda values: values[:, 0] > 0)
    assert (label(ours) == label(theirs)).all()
