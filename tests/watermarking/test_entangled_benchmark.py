"""The row of the soft nearest neighbour loss: all contenders compute the same gradient."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.suites import entangled, rows


def test_contenders_take_the_same_step():
    contenders = rows("smoke")["soft_nearest_neighbour/8"]().contenders
    key = jax.random.key(0)
    start = contenders["ours"].method.init(key)
    ours, by_differences = (
        np.asarray(jax.jit(contenders[name].method.step)(key, start)[0]) for name in ("ours", "differences")
    )
    assert np.abs(ours - np.asarray(start)).max() > 1e-6
    np.testing.assert_allclose(ours, by_differences, atol=1e-6)
    pytest.importorskip("torch")
    peer = contenders["pytorch"].build()
    peer()
    np.testing.assert_allclose(ours, np.asarray(start) + 1e-3 * peer.gradient.numpy(), atol=1e-6)
    assert peer.peak >= start.nbytes
    assert peer.temperature == entangled.TEMPERATURE
