"""The PyTorch procedures of the benchmarks compute what ours do. No times here."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks import peers_watermarking
from benchmarks.suites import rows
from dfke_jax.nn import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.watermarking import MarkingSettings

SHAPE = (4, 4, 1)


def test_marking_steps():
    """Four steps on all rows and all triggers, across a fall of the rate."""
    settings = MarkingSettings(batch_size=5, triggers_per_batch=3, learning_rate=0.3, decay_every=2, weight_decay=0.01)
    images, beside = (jax.random.uniform(jax.random.key(i), (n, *SHAPE)) for i, n in ((0, 5), (1, 3)))
    labels, marks = jnp.arange(5) % 3, jnp.array([2, 0, 1])
    network = Classifier.create(MLP(3, ()), jax.random.key(2), SHAPE)
    head = network.variables["params"]["head"]

    linear = torch.nn.Linear(16, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(head["kernel"]).T))
        linear.bias.copy_(torch.tensor(np.asarray(head["bias"])))
    theirs = torch.nn.Sequential(torch.nn.Flatten(), linear)
    peer = peers_watermarking.Marking(theirs, (images, labels), (beside, marks), settings, steps=1)
    for _ in range(4):
        peer.step(torch.arange(5), torch.arange(3))

    # a step on all rows in their order: the same optimiser on the mean over both tables
    everything, wanted = jnp.concatenate([images, beside]), jnp.concatenate([labels, marks])
    rule = settings.optimizer
    params = network.variables["params"]
    optimizer_state = rule.init(params)
    mean = jax.jit(
        jax.grad(lambda params: cross_entropy(network.replace(variables={"params": params})(everything), wanted).mean())
    )
    for _ in range(4):
        updates, optimizer_state = rule.update(mean(params), optimizer_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["head"]["kernel"], linear.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(params["head"]["bias"], linear.bias.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("network", ["lenet5", "mlp_small"])
def test_peers_run_and_learn(network):
    row = rows("smoke")[f"null_population/{network}/2"]()
    work = row.contenders["pytorch"].build()
    before = [p.detach().clone() for network, _ in work.members for p in network.parameters()]
    work()
    after = [p for network, _ in work.members for p in network.parameters()]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert work.table.shape == (2, 20)
    assert row.also == {"images/s": 8}
