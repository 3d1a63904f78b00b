"""The benchmarks run, write what they promise, and their peers compute what they are compared with. No times here."""

import functools
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import cores, harness
from benchmarks.__main__ import main, table
from benchmarks.compare import compare, interval
from benchmarks.suites import SUITES, rows
from benchmarks.suites import noise as noise_suite
from benchmarks.suites.common import classifier, random_images

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@functools.cache
def measured():
    """One tiny row."""
    row = noise_suite.row("lenet5", 2, 2, peer_steps=2)
    return tuple(harness.measure("tiny", row, suite="smoke", blocks=7, min_seconds=1e-4))


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results" / "a.jsonl"
    harness.append(path, measured())
    return path


def test_a_row_becomes_well_formed_lines(results):
    records = harness.read(results)
    assert [record["contender"] for record in records] == ["ours", "ours_one_device", "lax_step", "pytorch"]
    ours, alone, plain, peer = records
    for record in records:
        assert record["params"]["batch"] == 2
        assert record["unit"] == "image-steps/s"
        assert record["device"]["platform"] == jax.default_backend()
        assert {"jax", "jaxlib", "torch", "dfke-jax"} <= set(record["versions"])
        assert "revision" in record
        trip = record["core_round_trip"]
        assert trip is None or 0 < trip["p10"] <= trip["median"] <= trip["p90"]
    for record in (ours, alone, plain):
        rate = record["rate"]
        assert 0 < rate["p10"] <= rate["median"] <= rate["p90"]
        assert rate["n"] == len(record["blocks"]) == 7
        assert all(record["compile"][part] > 0 for part in ("trace_lower", "compile", "first_call"))
        assert record["memory"]["total"] > 0
        assert record["bytes"]["accessed_per_unit"] > 0
    ratio = np.median(np.divide(ours["blocks"], plain["blocks"]))
    assert ours["ratio_to"]["lax_step"]["median"] == pytest.approx(ratio)
    assert ("skipped" in peer) == (importlib.util.find_spec("torch") is None)
    if "skipped" not in peer:
        assert peer["torch"]["threads"] in map(int, peer["torch"]["seconds_per_call"])
    assert table(records).row_count == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its cores here")
def test_a_round_trip_between_cores_is_timed_and_leaves_the_affinity_alone(monkeypatch):
    mine = os.sched_getaffinity(0)
    found = cores.round_trip(turns=20, samples=3)
    assert os.sched_getaffinity(0) == mine
    if found is not None:  # other work on these cores may take them for longer than a round trip waits
        assert 20 < found < 1e9
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert cores.round_trip() is None


def test_model_arithmetic_is_that_of_the_plain_convolution():
    ours, _, plain, *_ = measured()
    forward = 2 * (28**2 * 6 * 25 + 10**2 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    assert ours["flops"]["model_per_unit"] == pytest.approx(2 * forward, rel=0.1)
    assert plain["flops"]["executed_per_unit"] == ours["flops"]["model_per_unit"]
    if jax.default_backend() == "cpu":
        assert ours["flops"]["executed_per_unit"] > ours["flops"]["model_per_unit"]


def test_two_files_are_compared(results, tmp_path, capsys):
    faster = []
    for record in harness.read(results):
        if record["contender"] == "ours":
            record = {**record, "blocks": [2 * rate for rate in record["blocks"]]}
        faster.append(record)
    other = tmp_path / "b.jsonl"
    harness.append(other, faster)
    found = {row.contender: row for row in compare(harness.read(results), harness.read(other))}
    assert found["ours"].change.ratio == pytest.approx(2)
    assert found["lax_step"].change.ratio == pytest.approx(1)
    assert found["ours"].executed == found["ours"].memory == 1
    if "pytorch" in found:
        assert found["ours"].corrected is not None
        assert found["ours"].corrected.ratio == pytest.approx(2)
    assert main(["compare", str(results), str(other)]) == 0
    assert "ours" in capsys.readouterr().out


def test_different_parameters_are_not_compared(results):
    records = harness.read(results)
    assert compare(records, [{**record, "params": {"batch": 3}} for record in records]) == []


def test_the_interval_covers_the_ratio_of_medians():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        a, b = rng.lognormal(0, 0.1, 11), 1.5 * rng.lognormal(0, 0.1, 11)
        _, low, high = interval(a, b, draws=400)
        hits += low <= 1.5 <= high
    assert hits >= 85


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"schema": harness.SCHEMA}) + "\nno\n")
    with pytest.raises(ValueError, match="line 2"):
        harness.read(path)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1"):
        harness.read(path)


def test_without_pytorch_the_peer_is_skipped(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(harness.Skipped, match="not installed"):
        harness.PreparedPeer(harness.Peer(lambda: lambda: None, 1))


def test_suites_list_rows_without_building_them(capsys):
    for suite in SUITES:
        assert main(["list", "--suite", suite]) == 0
        assert capsys.readouterr().out.split() == list(rows(suite))
    assert main(["run", "nothing*"]) == 2
    with pytest.raises(SystemExit):
        main(["run", "--repeats", "3"])
    assert "at least 7" in capsys.readouterr().err


@pytest.mark.slow
def test_the_contenders_of_noise_optimisation_make_the_same_images():
    row = noise_suite.row("lenet5", 3, 4, peer_steps=4)
    start = np.asarray(
        row.contenders["ours"].method.init(jax.random.fold_in(jax.random.key(4), np.uint32(2**32 - 1)))[0]
    )
    ours, plain = (harness.Prepared(row.contenders[name]) for name in ("ours", "lax_step"))  # have made one call
    plain.run(3)
    made = np.asarray(ours.state[0])
    assert np.abs(made - start).max() > 0.02
    np.testing.assert_allclose(made, np.asarray(plain.state[0]), atol=1e-4)
    pytest.importorskip("torch")
    from benchmarks.peers import images_to

    peer = row.contenders["pytorch"].build()
    np.testing.assert_array_equal(images_to(peer.images), start)
    peer()
    np.testing.assert_allclose(made, images_to(peer.images), atol=1e-4)


@needs_torch
@pytest.mark.parametrize("name", ["lenet5_bn", "resnet8"])
def test_peers_compute_the_same_networks(name):
    from benchmarks import peers

    ours = classifier(name)
    stats = jax.tree.map(lambda leaf: leaf + 0.1 * np.arange(leaf.size) / leaf.size, ours.variables["batch_stats"])
    ours = ours.replace(variables={**ours.variables, "batch_stats": stats})
    if name == "resnet8":
        theirs = peers.resnet_from(ours.variables, ours.module.depths, ours.module.widths)
    else:
        theirs = peers.lenet5_from(ours.variables)
    images = random_images(3, ours.input_shape)
    expected = theirs(peers.images_from(images)).detach().cpu().numpy()
    np.testing.assert_allclose(np.asarray(jax.jit(ours.logits)(images)), expected, atol=1e-4)


@needs_torch
def test_the_augmentation_of_the_peer_moves_images_alike():
    from benchmarks import peers
    from dfke_jax.data.augment import warp

    images = random_images(2)
    # ranges of no width leave nothing to chance
    still = {"rotation_radians": 0.0, "scale": (1.2, 1.2), "shift_pixels": 0.0, "max_sigma": 0.0}
    work = peers.Distillation(
        peers.LeNet5((3, 8)), peers.LeNet5(), images, temperature=1.0, rate=0.1, schedule=1, batch=2, steps=1,
        augmentation=still,
    )  # fmt: skip
    expected = warp(images, np.zeros(2), np.full(2, 1.2), np.zeros((2, 2)))
    np.testing.assert_allclose(peers.images_to(work.augmented(work.images)), np.asarray(expected), atol=1e-4)


def duel_at_equal_weights(kind, **changes):
    """One iteration of our duel and the peer before it, with the latents that ours draws."""
    from benchmarks import peers, peers_generators
    from dfke_jax import distillation
    from dfke_jax.nn.generators import draw_latents

    make, made = {
        "dafl": (distillation.dafl, distillation.DAFLSettings),
        "dfad": (distillation.dfad, distillation.DFADSettings),
        "zskt": (distillation.zskt, distillation.ZSKTSettings),
    }[kind]
    sgd = {"momentum": 0.0, "weight_decay": 0.0, "student_optimizer": "sgd", "generator_optimizer": "sgd"}
    shared = {"batch_size": 100, "width": 2, "latent": 4, "schedule": "constant", "student_rate": 0.05, **sgd}
    settings = made(**{**shared, "generator_rate": 0.1, **changes})
    teacher, student = classifier("lenet5"), classifier("lenet5_half", 7)
    method = make(teacher, student, settings)
    state = jax.jit(method.init)(jax.random.key(0))
    key = jax.random.key(1)
    z = draw_latents(jax.random.split(key, 3)[0], (100,), SimpleNamespace(latent=4))
    peer = peers_generators.Duel(
        kind,
        [peers.lenet5_from(teacher.variables)],
        peers.lenet5_from(state.student.variables).requires_grad_(True),
        peers.dfme_generator_from(state.generator.variables),
        batch=100, latent=4, updates=getattr(settings, "student_steps", 1), student_rate=settings.student_rate,
        generator_rate=0.1, clip=settings.clip, optimizer=torch_sgd(),
    )  # fmt: skip
    after, metrics = jax.jit(method.step)(key, state)
    return after, metrics, peer, peers._tensor(z)


def torch_sgd():
    import torch

    return torch.optim.SGD


@needs_torch
@pytest.mark.parametrize("kind", ["dafl", pytest.param("zskt", marks=pytest.mark.slow)])
def test_an_iteration_of_a_duel_and_of_its_peer_move_both_players_alike(kind):
    changes = {"zskt": {"attention": 0.0, "student_steps": 3}}
    after, _, peer, z = duel_at_equal_weights(kind, **changes.get(kind, {}))
    before = peer.student.head.bias.detach().numpy().copy()
    peer.iteration(z)
    moved = peer.student.head.bias.detach().numpy()
    assert np.abs(moved - before).max() > 1e-4
    np.testing.assert_allclose(np.asarray(after.student.variables["params"]["head"]["bias"]), moved, atol=2e-6)
    kernel = peer.generator.convs[2].weight.detach().permute(2, 3, 1, 0).numpy()
    np.testing.assert_allclose(np.asarray(after.generator.variables["params"]["conv3"]["kernel"]), kernel, atol=2e-6)


@needs_torch
@pytest.mark.slow
def test_the_peer_of_dfad_climbs_the_same_distance():
    from benchmarks.peers_generators import pictures

    _, metrics, peer, z = duel_at_equal_weights("dfad", student_rate=1e-12, student_steps=1)
    images = pictures(peer.generator(z))
    loss = peer.response(images, [peer.teachers[0](images)]).item()
    assert float(metrics["generator_loss"]) == pytest.approx(-loss, rel=1e-4)


@needs_torch
@pytest.mark.slow
def test_the_peers_of_inversions_descend_the_same_losses():
    import torch

    from benchmarks import peers, peers_generators
    from dfke_jax import distillation

    teacher, student = classifier("lenet5_bn"), classifier("lenet5_half", 7)
    settings = distillation.FastSettings(
        batch_size=6, width=2, latent=4, steps=1, rounds=2, warm_up=0, student_steps=1, student_batch=2,
        student_optimizer="adam", student_rate=1e-3, schedule="constant",
    )  # fmt: skip
    method = distillation.fast_dfkd(teacher, student, settings)
    state = jax.jit(method.init)(jax.random.key(0))
    key = jax.random.key(1)
    _, metrics = jax.jit(method.step)(key, state)
    batch = jax.random.fold_in(jax.random.split(key)[0], 0)
    label_key, latent_key, _ = jax.random.split(batch, 3)
    labels = jax.random.randint(label_key, (6,), 0, 10)
    z = jax.random.normal(latent_key, (6, 4))
    fresh = peers.DFMEGenerator(2, 4, normalised_output=False).state_dict()
    assert "convs.2.bias" in fresh
    generator = generator_from(state.carried.generator)
    peer = peers_generators.FastInversion(
        peers.lenet5_from(teacher.variables), peers.lenet5_from(state.student.variables), generator,
        batch=6, latent=4, steps=1, student_steps=1, student_batch=2, room=12,
        weights=(settings.statistics, settings.one_hot, settings.adversarial), generator_rate=1e-3, latent_rate=1e-2,
        student_rate=1e-3, temperature=20.0, average=0.9,
    )  # fmt: skip
    peer.student.eval()
    loss = peer.loss(peers_generators.pictures(generator(peers._tensor(z))), peers._tensor(labels).long())
    assert float(metrics["inversion_loss"]) == pytest.approx(loss.item(), rel=1e-4)
    draw = lambda: (torch.randn(6, 4), torch.randint(10, (6,)))
    peer.invert(*draw())
    first = peer.averages
    seen = list(peer.moments.found)
    for before, batch in zip(first, seen, strict=True):  # of the first batch they are its own moments
        torch.testing.assert_close(before, tuple(part.detach() for part in batch))
    peer.invert(*draw())
    assert len(peer.averages) == len(peer.moments.found) == len(first) > 0
    for after, before, batch in zip(peer.averages, first, peer.moments.found, strict=True):
        torch.testing.assert_close(after, tuple(0.9 * old + 0.1 * new for old, new in zip(before, batch, strict=True)))
    peer.student.requires_grad_(True)
    peer()
    peer()
    assert peer.written == 12, "two rounds fill the bank"
    assert peer.bank.any()

    groups = distillation.GroupSettings(groups=5, batch_size=10, width=2, latent=4)
    method = distillation.statistics_generators(teacher, groups)
    state = jax.jit(method.init)(jax.random.key(0))
    _, metrics = jax.jit(method.step)(key, state)
    class_key, latent_key = jax.random.split(key)
    labels = np.arange(5)[:, None] + 5 * np.asarray(jax.random.randint(class_key, (5, 2), 0, np.full((5, 2), 2)))
    z = jax.random.normal(latent_key, (5, 2, 4))
    each = [generator_from(jax.tree.map(lambda leaf, g=g: leaf[g], state.variables["params"])) for g in range(5)]
    peer = peers_generators.GroupGenerators(
        peers.lenet5_from(teacher.variables), each, batch=10, latent=4, statistics=groups.statistics, rate=1e-3
    )
    loss = peer.loss(peers._tensor(z), torch.tensor(labels))
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-4)


def generator_from(params):
    """The peer of a generator whose running statistics are never read."""
    from benchmarks import peers

    norms = ("dense_norm", "conv1_norm", "conv2_norm")
    stats = {name: {"mean": 0 * params[name]["bias"], "var": 1 + 0 * params[name]["bias"]} for name in norms}
    return peers.dfme_generator_from({"params": params, "batch_stats": stats})
