"""Explanations against Jacobians, finite differences, PyTorch and what each kind promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.lenet import LeNet5
from dfke_jax.oracle import (
    EXPLANATIONS,
    Explained,
    Explanation,
    Reveal,
    Temperature,
    ZerothOrderWarning,
    check_zeroth_order,
    explained_gradients,
    explanation,
    explanation_oracle,
    from_function,
    oracle_for,
)

SHAPE = (5, 4, 2)


@jax.jit
def ask(oracle, rows):
    return oracle(rows)


def jacobian(victim, rows):
    one = lambda row: jax.nn.softmax(victim(row[None])[0])
    return jax.jit(jax.vmap(jax.jacobian(one)))(rows)


def explained(victim, rows, **setting):
    return ask(explanation_oracle(victim, Explanation(**setting)), rows).explanation


def test_gradients_of_all_classes_are_the_jacobian(victim, rows):
    found = ask(explanation_oracle(victim), rows)
    assert isinstance(found, Explained)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(victim(rows)), rtol=1e-5)
    assert found.explanation.shape == (9, 4, *SHAPE)
    np.testing.assert_allclose(found.explanation, jacobian(victim, rows), atol=1e-6)
    np.testing.assert_allclose(found.explanation.sum(1), 0, atol=1e-6, err_msg="probabilities sum to one")


def test_more_classes_than_fit_side_by_side_take_turns(rows):
    weights = jax.random.normal(jax.random.key(0), (40, 23))
    victim = Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    found = explanation_oracle(victim, input_shape=SHAPE)(rows).explanation
    p = np.asarray(jax.nn.softmax(victim(rows)))
    expected = np.einsum("bk,kl,dl->bkd", p, np.eye(23), weights) - np.einsum("bk,bl,dl->bkd", p, p, weights)
    np.testing.assert_allclose(found.reshape(9, 23, 40), expected, atol=1e-5)


def test_gradients_are_finite_differences(victim, rows):
    """Central differences of float64 softmax of float32 logits, at a step where both errors are small."""
    probabilities = lambda x: np.asarray(jax.nn.softmax(victim(x)), np.float64)
    found = np.asarray(explained(victim, rows))
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = rng.normal(size=(1, *SHAPE)).astype(np.float32)
        direction /= np.linalg.norm(direction)
        difference = (probabilities(rows + 0.01 * direction) - probabilities(rows - 0.01 * direction)) / 0.02
        along = np.einsum("bkhwc,hwc->bk", found, direction[0])
        np.testing.assert_allclose(along, difference, atol=2e-3 * np.abs(found).max())


@pytest.mark.parametrize("kind", EXPLANATIONS)
def test_the_top_class_alone_is_that_row_of_all(victim, rows, kind):
    every = explained(victim, rows, kind=kind, samples=3, steps=3)
    top = explained(victim, rows, kind=kind, samples=3, steps=3, classes="top")
    labels = np.asarray(victim(rows)).argmax(1)
    assert len(set(labels)) > 1
    assert top.shape == (9, *SHAPE)
    np.testing.assert_allclose(top, np.asarray(every)[np.arange(9), labels], atol=1e-6)


def test_signs_sizes_products_and_rounding(victim, rows):
    gradient = np.asarray(explained(victim, rows))
    kind = functools.partial(explained, victim, rows)
    np.testing.assert_array_equal(kind(kind="sign"), np.sign(gradient))
    np.testing.assert_allclose(kind(kind="abs"), np.abs(gradient), atol=1e-7)
    np.testing.assert_allclose(kind(kind="gradient_times_input"), gradient * rows[:, None], atol=1e-7)
    np.testing.assert_allclose(kind(decimals=2), gradient.round(2), atol=1e-6)


def test_integrated_gradients_are_complete(victim, rows):
    """Their sum over pixels is p(x) − p(baseline)."""
    for baseline in (0.0, 0.5):
        found = explained(victim, rows, kind="integrated_gradients", steps=100, baseline=baseline)
        p = lambda x: np.asarray(jax.nn.softmax(victim(x)))
        difference = p(rows) - p(np.full_like(rows, baseline))
        np.testing.assert_allclose(np.asarray(found).sum((2, 3, 4)), difference, atol=1e-3)
    coarse = explained(victim, rows, kind="integrated_gradients", steps=2)
    half = [0.5 * (jacobian(victim, rows * at)) for at in (0.25, 0.75)]
    np.testing.assert_allclose(coarse, rows[:, None] * sum(np.asarray(h) for h in half), atol=1e-6)


def quadratic(weights, x):
    """Probabilities ½ ± wᵀx² / 100: their gradient is linear, so smoothing leaves it."""
    share = 0.5 + (jnp.square(x).reshape(len(x), -1) @ weights)[:, None] / 100
    return jnp.concatenate([share, 1 - share], 1)


def test_smooth_gradients_are_the_mean_over_noise_that_belongs_to_the_row(victim, rows):
    weights = jax.random.normal(jax.random.key(0), (40,))
    make = lambda samples, **more: explanation_oracle(
        Partial(quadratic, weights), Explanation("smooth_grad", samples=samples, deviation=0.3, **more),
        input_shape=SHAPE, gives="probabilities",
    )  # fmt: skip
    found = np.asarray(ask(make(400), rows).explanation)
    exact = 2 * np.asarray(weights).reshape(1, *SHAPE) * rows / 100
    error = (found[:, 0] - exact) / (2 * np.abs(np.asarray(weights)).reshape(1, *SHAPE) / 100 * 0.3)
    assert abs(error.std() * np.sqrt(400) - 1) < 0.15, "the standard error of 400 draws of this deviation"
    np.testing.assert_allclose(found[:, 1], -found[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[4:5], ask(make(400), rows[4:5]).explanation, atol=1e-6)
    other = ask(make(400, seed=1), rows).explanation
    assert np.abs(np.asarray(other) - found).max() > 1e-5
    still = explained(victim, rows, kind="smooth_grad", samples=2, deviation=0.0)
    np.testing.assert_allclose(still, explained(victim, rows), atol=1e-6)


def test_lenet_against_pytorch_autograd():
    torch = pytest.importorskip("torch")
    shape, pre = (28, 28, 1), Preprocessing(size=(32, 32), mean=(0.3,), std=(0.4,))
    victim = Classifier.create(LeNet5(10), jax.random.key(0), shape, pre)
    x = np.random.default_rng(0).uniform(size=(3, *shape)).astype(np.float32)
    found = ask(explanation_oracle(victim), x)
    p = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), victim.variables["params"])
    kernel = lambda name: p[name]["kernel"].permute(3, 2, 0, 1)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    z = (torch.nn.functional.pad(images, (2, 2, 2, 2)) - 0.3) / 0.4
    for name in ("conv1", "conv2"):
        z = torch.relu(torch.max_pool2d(torch.conv2d(z, kernel(name), p[name]["bias"]), 2))
    z = z.permute(0, 2, 3, 1).flatten(1)
    for name in ("dense1", "dense2"):
        z = torch.relu(z @ p[name]["kernel"] + p[name]["bias"])
    answers = torch.softmax(z @ p["head"]["kernel"] + p["head"]["bias"], -1)
    np.testing.assert_allclose(found.probabilities, answers.detach(), rtol=1e-4)
    for k in range(10):
        (gradient,) = torch.autograd.grad(answers[:, k].sum(), images, retain_graph=True)
        expected = gradient.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found.explanation[:, k], expected, atol=1e-4 * np.abs(expected).max())


def test_defences_and_rounding_act_on_the_probabilities_alone(victim, rows):
    reveal, defences = Reveal("top_k", k=2, decimals=2), (Temperature(2.0),)
    oracle = explanation_oracle(victim, Explanation(), reveal, defences)
    found = ask(oracle, rows)
    np.testing.assert_allclose(found.probabilities, oracle_for(victim, reveal, defences)(rows), atol=1e-6)
    np.testing.assert_allclose(found.explanation, explained(victim, rows), atol=1e-6)
    assert oracle.reveal == reveal
    assert oracle.describe()["explanation"]["kind"] == "gradient"
    assert (oracle.num_classes, oracle.input_shape, oracle.defences) == (4, SHAPE, defences)


def test_gradients_under_uint8_are_those_of_the_stored_row(victim, rows):
    found = ask(explanation_oracle(victim, transport="uint8"), rows).explanation
    stored = (rows * 255).round() / np.float32(255)
    np.testing.assert_allclose(found, jacobian(victim, stored), atol=1e-5)


def test_what_an_attacker_reads_out_of_explanations(victim, rows):
    rows = rows.copy()
    rows[:, 0] = 0
    gradient = np.asarray(explained(victim, rows))
    for kind in ("gradient", "smooth_grad", "gradient_times_input", "integrated_gradients"):
        for classes in ("all", "top"):
            setting = Explanation(kind, classes, deviation=1e-4, steps=200, samples=2)
            answers = ask(explanation_oracle(victim, setting), rows)
            read = np.asarray(explained_gradients(answers, rows, setting))
            assert read.shape == answers.explanation.shape
            if kind == "integrated_gradients":
                continue  # a mean along the way from the baseline, checked below
            expected = gradient if classes == "all" else gradient[np.arange(9), np.asarray(victim(rows)).argmax(1)]
            known = np.ones(SHAPE, bool) if kind != "gradient_times_input" else np.asarray(rows[0] != 0)
            np.testing.assert_allclose(read[..., known], expected[..., known], atol=1e-3)
            assert (read[..., ~known] == 0).all()
    setting = Explanation("integrated_gradients", steps=2, baseline=-1.0)
    read = explained_gradients(ask(explanation_oracle(victim, setting), rows), rows, setting)
    mean = sum(np.asarray(jacobian(victim, -1 + (rows + 1) * at)) for at in (0.25, 0.75)) / 2
    np.testing.assert_allclose(read, mean, atol=1e-5)
    with pytest.raises(core.InputError, match="sign of an absolute gradient"):
        explained_gradients(answers, rows, Explanation("abs"))


def begin(key):
    return {"seen": jnp.zeros((4, *SHAPE))}


def propose(key, state):
    return state, jax.random.uniform(key, (3, *SHAPE))


def learn(key, state, rows, answers):
    return {"seen": state["seen"] + answers.explanation.sum(0)}, {"p": answers.probabilities.max()}


def test_an_attack_is_told_explanations(victim):
    attack = core.Attack(Partial(begin), Partial(propose), Partial(learn))
    run = core.run(core.against(attack, explanation_oracle(victim)), jax.random.key(0), 2)
    rows = jnp.concatenate(
        [jax.random.uniform(jax.random.fold_in(jax.random.key(0), t), (3, *SHAPE)) for t in range(2)]
    )
    np.testing.assert_allclose(run.state["seen"], np.asarray(jacobian(victim, rows)).sum(0), atol=1e-5)


def test_settings_are_read_from_text():
    assert explanation("smooth_grad:samples=8,classes=top,decimals=3") == Explanation(
        "smooth_grad", "top", samples=8, decimals=3
    )
    for text, error, message in (
        ("smoothgrad", core.UnknownNameError, "nearest: smooth_grad"),
        ("gradient:kind=abs", core.UnknownNameError, "argument of explanation"),
        ("gradient:decimals=x", core.InputError, "whole number"),
        ("gradient:classes=some", core.InputError, "'all' or 'top'"),
        ("smooth_grad:samples=0", core.InputError, "at least 1"),
        ("smooth_grad:decimals=-1", core.InputError, "at least 0"),
    ):
        with pytest.raises(error, match=message):
            explanation(text)


def test_what_cannot_be_explained_is_refused(victim):
    host = from_function(lambda rows: np.ones((len(rows), 4)) / 4, SHAPE, 4)
    for make, message in (
        (lambda: explanation_oracle(victim, reveal=Reveal("label")), "reveals 'label' has no probabilities"),
        (lambda: explanation_oracle(oracle_for(victim, Reveal("logits"))), "reveals 'logits'"),
        (lambda: explanation_oracle(host), "cannot be differentiated"),
        (lambda: explanation_oracle(oracle_for(victim), reveal=Reveal()), "has its own already"),
    ):
        with pytest.raises(core.InputError, match=message):
            make()


def test_finite_differences_behind_an_explanation_are_checked_too(victim):
    with pytest.warns(ZerothOrderWarning, match="uint8"):
        check_zeroth_order(explanation_oracle(victim, transport="uint8"), 1e-3, 40)


def test_gradients_of_feature_vectors_are_read_out():
    """(B, K, D) of all classes, (B, D) of the top one: divided by the feature, as those of images are."""
    rows = np.array([[2.0, 0.0], [-1.0, 4.0]], np.float32)
    maps = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    kind = Explanation("gradient_times_input")
    expected = np.where(rows[:, None] == 0, 0, maps / np.where(rows == 0, 1, rows)[:, None])
    np.testing.assert_array_equal(explained_gradients(Explained(maps[..., 0], maps), rows, kind), expected)
    np.testing.assert_array_equal(explained_gradients(Explained(maps[..., 0], maps[:, 1]), rows, kind), expected[:, 1])
