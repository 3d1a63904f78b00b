"""The row of data-free extraction runs, and its peer plays the same game."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import harness
from benchmarks.suites import extraction, rows
from dfke_jax.nn.generators import DFMEGenerator

ROW = "dfme/lenet5/2"


@pytest.fixture(scope="module")
def row():
    return rows("smoke")[ROW]()


@pytest.fixture(scope="module")
def fused(row):
    return harness.Prepared(row.contenders["ours"])  # has taken two iterations


@pytest.mark.slow
def test_the_split_contender_plays_the_same_game(row, fused):
    """After as many iterations its clone is where the fused one is. Adam divides rounding by its own size."""
    split = harness.PreparedSplit(row.contenders["host_split"])
    assert split.units * 2 == fused.units == 2
    game = row.contenders["host_split"].method
    begun = jax.jit(game.init)(jax.random.fold_in(row.contenders["host_split"].key, np.uint32(2**32 - 1)))
    found, expected, before = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.clone.variables)])
        for state in (split.state, fused.state, begun)
    )
    moved = np.linalg.norm(expected - before)
    assert moved > 0.1
    assert np.linalg.norm(found - expected) < 0.1 * moved


@pytest.mark.slow
def test_our_contender_runs(row, fused):
    assert row.also == {"queries/s": 4 * (2 + 2)}
    fused.run(1)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(fused.state))


def test_the_peer_has_our_generator_and_estimates_the_gradient():
    torch = pytest.importorskip("torch")
    from benchmarks import peers

    module = DFMEGenerator((28, 28, 1), 3, 5)
    z = jax.random.normal(jax.random.key(1), (4, 5))
    variables = jax.jit(module.init)(jax.random.key(0), z)
    image = jax.jit(lambda z: module.apply(variables, z, train=True, mutable=["batch_stats"], method="pre_activation"))
    theirs = peers.dfme_generator_from(variables)(torch.tensor(np.asarray(z), device=peers.DEVICE))
    np.testing.assert_allclose(image(z)[0], peers.images_to(theirs), atol=1e-4)

    work = rows("smoke")[ROW]().contenders["pytorch"].build()
    before = [parameter.detach().clone() for parameter in (*work.clone.parameters(), *work.generator.parameters())]
    work()
    after = [*work.clone.parameters(), *work.generator.parameters()]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    work.directions, work.epsilon = 400, 1e-2
    x = torch.randn(2, 1, 28, 28, device=peers.DEVICE)
    leaf = x.clone().requires_grad_(True)
    pixels = (torch.tanh(leaf) + 1) / 2
    logs = torch.log_softmax(work.victim(pixels), 1)
    ((logs - logs.mean(1, keepdim=True)) - work.clone(pixels)).abs().mean().backward()
    cosine = torch.cosine_similarity(leaf.grad.flatten(), work.estimate(x).flatten(), dim=0)
    # for m independent directions in d dimensions about 1/√(1 + d/m)
    assert float(cosine) == pytest.approx(1 / np.sqrt(1 + 784 / 400), abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow forms are the CPU backend's")
def test_a_fused_iteration_has_fast_convolutions_only():
    # as wide as the full row: with fewer channels all convolutions are matrix products
    ours = harness.Prepared(extraction.row(16, 4, 2, 2, 1, 1).contenders["ours"])
    lines = [line.strip() for line in ours._compiled.as_text().splitlines() if "dim_labels=" in line]
    assert lines
    grouped = re.compile(r"(?:feature|batch)_group_count=(?!1\b)\d+")
    assert [line for line in lines if "dim_labels=b01f_01io->b01f" not in line or grouped.search(line)] == []
