"""The two networks of entangled watermarks against PyTorch at equal weights, and what they record."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn import Classifier, observe
from dfke_jax.nn.recurrent import LSTM
from dfke_jax.nn.two_conv import TwoConv

torch = pytest.importorskip("torch")
F = torch.nn.functional


def made(module, shape):
    network = Classifier.create(module, jax.random.key(0), shape)
    noise = lambda leaf: leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)
    network = network.replace(variables=jax.tree.map(noise, network.variables))
    images = np.random.default_rng(1).random((3, *shape), np.float32)
    return network, images, jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), network.variables["params"])


def assert_equal(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=2e-5)


def test_two_convolutions():
    network, images, weights = made(TwoConv(5, (3, 4), 6), (8, 12, 1))
    found = jax.jit(network.activations)(images)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    for name, padding in (("conv1", 2), ("conv2", 1)):
        x = F.conv2d(x, weights[name]["kernel"].permute(3, 2, 0, 1), weights[name]["bias"], padding=padding)
        assert_equal(found[name], x.permute(0, 2, 3, 1))
        x = F.max_pool2d(F.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1) @ weights["dense1"]["kernel"] + weights["dense1"]["bias"]
    assert_equal(found["dense1"], x)
    assert_equal(found["logits"], F.relu(x) @ weights["head"]["kernel"] + weights["head"]["bias"])
    seen = observe(network.module, network.variables, jnp.asarray(images), train=True, activations=True)
    assert seen.updated == {}
    np.testing.assert_allclose(seen.activations["conv1"], found["conv1"], atol=1e-5)
    network.check_layers(("conv1", "features"))
    with pytest.raises(UnknownNameError, match="unknown recorded layer of TwoConv 'conv3'; nearest: conv"):
        network.check_layers(("conv1", "conv3"))


def test_lstm():
    network, images, weights = made(LSTM(5, 7, 6), (9, 4, 1))
    found = jax.jit(network.activations)(images)
    theirs = torch.nn.LSTM(4, 7, batch_first=True)
    (cell,) = [tree for name, tree in weights.items() if name not in ("dense1", "head")]
    join = lambda kind, part: torch.cat([cell[f"{kind}{gate}"][part].T for gate in "ifgo"])
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(join("i", "kernel"))
        theirs.weight_hh_l0.copy_(join("h", "kernel"))
        theirs.bias_ih_l0.zero_()
        theirs.bias_hh_l0.copy_(torch.cat([cell[f"h{gate}"]["bias"] for gate in "ifgo"]))
        states, _ = theirs(torch.tensor(images[..., 0]))
    assert_equal(found["state_middle"], states[:, 4])
    assert_equal(found["state_last"], states[:, -1])
    x = states[:, -1] @ weights["dense1"]["kernel"] + weights["dense1"]["bias"]
    assert_equal(found["dense1"], x)
    assert_equal(found["logits"], F.relu(x) @ weights["head"]["kernel"] + weights["head"]["bias"])
    with pytest.raises(InputError, match="time, features, 1"):
        network.module.init(jax.random.key(0), jnp.zeros((1, 9, 4, 3)))
