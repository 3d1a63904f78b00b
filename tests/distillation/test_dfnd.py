"""Noisy distillation on images in the wild: what is chosen, the adaptation matrix, one step as PyTorch takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.distillation import DFNDSettings, adaptation_matrix, dfnd, knowledge_distillation, most_certain
from dfke_jax.distillation.dfnd import answer_weights
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

KEY = jax.random.key(41)
SHAPE = (6, 6, 1)
PLAIN = {"steps": 5, "batch_size": 7, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def wild():
    return np.random.default_rng(42).uniform(size=(30, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    return Classifier.create(MLP(3, (4,)), jax.random.key(43), SHAPE)


def test_the_surest_rows(teacher, wild):
    rows = most_certain(wild, teacher, 9)
    surest = np.asarray(jax.nn.softmax(teacher(jnp.asarray(wild)))).max(1)
    assert len(set(rows)) == 9
    assert np.all(np.diff(surest[rows]) <= 1e-6), "the surest first"
    assert surest[rows].min() >= np.delete(surest, rows).max() - 1e-6
    for count in (0, 31):
        with pytest.raises(core.InputError, match="between 1 and 30 images"):
            most_certain(wild, teacher, count)


def test_the_adaptation_matrix_row_by_row():
    free = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    found = np.asarray(adaptation_matrix(jnp.asarray(free), 0.9))
    for i in range(4):
        others = 0.1 * np.exp(free[i]) / np.exp(free[i]).sum()
        np.testing.assert_allclose(found[i], np.insert(others, i, 0.9), rtol=1e-5)


def test_weights_of_answers():
    found = answer_weights(np.array([0, 0, 0, 2]), 3)
    inverse = np.array([1 / 4, 1, 1 / 2])
    np.testing.assert_allclose(found, inverse / inverse.mean(), rtol=1e-6)


def test_a_step_is_what_torch_takes(teacher, small, wild):
    """Loss and update of student and adaptation matrix."""
    torch = pytest.importorskip("torch")
    settings = DFNDSettings(teacher_accuracy=0.8, adaptation_rate=0.01, learning_rate=0.3, **PLAIN)
    method = dfnd(teacher, small, jnp.asarray(wild), settings)
    first = jax.jit(method.init)(KEY)
    step = jax.jit(method.step)
    state, _ = step(jax.random.fold_in(KEY, 9), first)  # a matrix that is no longer uniform
    after, metrics = step(KEY, state)

    rows = np.asarray(jax.random.randint(jax.random.split(KEY, 3)[0], (7,), 0, 30))
    answers = torch.tensor(np.array(teacher(jnp.asarray(wild[rows]))))
    said = answers.argmax(1)
    counts = np.bincount(teacher.predict(wild).argmax(1), minlength=3) + 1
    weights = torch.tensor((1 / counts) / (1 / counts).mean(), dtype=torch.float32)
    before = state.student.variables["params"]
    tensors = {
        (layer, name): torch.tensor(np.array(before[layer][name]), requires_grad=True)
        for layer in ("dense1", "head")
        for name in ("kernel", "bias")
    }
    free = torch.tensor(np.array(state.adaptation.variables["params"]["free"]), requires_grad=True)
    x = torch.tensor(wild[rows].reshape(7, -1))
    hidden = torch.relu(x @ tensors["dense1", "kernel"] + tensors["dense1", "bias"])
    logits = hidden @ tensors["head", "kernel"] + tensors["head", "bias"]
    parts = torch.nn.functional.kl_div(
        torch.log_softmax(logits / 2, 1), torch.softmax(answers / 2, 1), reduction="none"
    )
    apart = 4 * (parts * weights[said][:, None]).sum() / 7
    others = 0.2 * torch.softmax(free, 1)
    matrix = torch.stack([torch.cat([others[i][:i], torch.tensor([0.8]), others[i][i:]]) for i in range(3)])
    noisy = torch.nn.NLLLoss(weight=weights)(torch.log(torch.softmax(logits, 1) @ matrix), said)
    (apart + noisy).backward()
    assert metrics["distillation"] == pytest.approx(apart.item(), rel=1e-4)
    assert metrics["noisy"] == pytest.approx(noisy.item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx((apart + noisy).item(), rel=1e-4)
    for (layer, name), tensor in tensors.items():
        expected = tensor.detach() - 0.3 * tensor.grad
        np.testing.assert_allclose(after.student.variables["params"][layer][name], expected, atol=1e-5)
    moved = after.adaptation.variables["params"]["free"] - state.adaptation.variables["params"]["free"]
    assert np.abs(moved).max() > 1e-4
    first_step = state.adaptation.variables["params"]["free"]
    np.testing.assert_allclose(np.abs(first_step[first_step != 0]), 0.01, rtol=1e-3)  # Adam's first


@pytest.mark.slow
def test_without_its_own_terms_it_is_plain_distillation(teacher, small, wild, close):
    settings = DFNDSettings(adaptation=0.0, class_weights=False, temperature=3.0, optimizer="adam", **PLAIN)
    found = core.run(dfnd(teacher, small, jnp.asarray(wild), settings), KEY, 4, chunk=4)
    plain = knowledge_distillation(
        small, teacher, jnp.asarray(wild), temperature=3.0, batch_size=7, learning_rate=0.1, steps=10**7
    )
    close(found.state.student.variables, core.run(plain, KEY, 4, chunk=4).state.variables, atol=1e-4)


def test_refusals(teacher, wild):
    for wrong in (
        {"teacher_accuracy": 1.0},
        {"teacher_accuracy": 0.0},
        {"adaptation": -1.0},
        {"temperature": 0.0},
        {"steps": 0},
        {"batch_size": 0},
    ):
        with pytest.raises(core.InputError, match=next(iter(wrong))):
            DFNDSettings(**wrong)
    with pytest.raises(core.UnknownNameError, match="optimiser"):
        DFNDSettings(optimizer="adaam")
    other = Classifier.create(MLP(4, (4,)), KEY, SHAPE)
    with pytest.raises(core.InputError, match="must agree on classes"):
        dfnd(teacher, other, jnp.asarray(wild), DFNDSettings())
