"""The PyTorch procedures of the benchmarks compute what ours do. No times here."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import peers_inference
from dfke_jax.dataset_inference import BlindWalkSettings, MinGDSettings, blind_walk, mingd
from dfke_jax.dataset_inference.blind_walk import directions


@pytest.mark.parametrize("forwards", [1, 2])
def test_walks(network, images, forwards):
    settings, key = BlindWalkSettings(starts=3, max_steps=20, noise=4.0), jax.random.key(1)
    labels = np.asarray(network(images)).argmax(1)
    ways = directions(key, jnp.arange(7, dtype=jnp.uint32), 16, settings)
    peer = peers_inference.BlindWalk(
        peers_inference.mlp_from(network.variables), images, labels, ways, settings.max_steps, forwards
    )
    peer()
    found = blind_walk(key, network, images, labels, settings)
    np.testing.assert_array_equal(peer.steps.numpy(), found.steps)
    assert 0 < found.never < 1


def test_descents(network, images):
    settings = MinGDSettings(max_steps=14, l1_step=0.3, l1_coordinates=3, l2_step=0.05, linf_step=0.01)
    peer = peers_inference.MinGD(peers_inference.mlp_from(network.variables), images, 4, settings)
    peer()
    np.testing.assert_allclose(peer.distances.numpy(), mingd(network, images, settings).distances, atol=1e-5)
