"""What decides a stage is in its fingerprint: data, labels, other recipes' presets; and one process a directory."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfke_jax
from dfke_jax import core, data
from dfke_jax.core.checkpoint import alone
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.bench.arm import Arm
from dfke_jax.experiments.bench.run import as_written
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import SupervisedSettings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.pool import PoolExtractionSettings

TINY = {"seeds": 1, "teacher": "mlp_small", "teacher_steps": 40, "teacher_batch": 32}
COUNT = core.method(lambda key: jnp.zeros(()), lambda key, n: (n + 1, {"n": n}))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


def written(path, turn=0, last=9):
    """A file of sixty images; the labels of all, or of the last alone, may be others."""
    path.parent.mkdir(exist_ok=True)
    split = data.load("digits").train.subset(60)
    labels = (split.labels + turn) % 10
    labels[-1] = last
    images = split.images
    np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return str(path)


def bench(dataset, out, **changes):
    return Workbench(SupervisedSettings(dataset=dataset, **{**TINY, **changes}), out, progress=False, devices=1)


@pytest.mark.slow
def test_networks_of_files_of_one_name_are_told_apart_by_their_labels(tmp_path, cache):
    """The images are the same, and so is the last part of the path."""
    paths = [written(tmp_path / "a" / "set.npz"), written(tmp_path / "b" / "set.npz", turn=5)]
    images = np.asarray(data.load(paths[0]).train.images)
    answers = [bench(path, tmp_path / f"run{i}").teacher(0).predict(images) for i, path in enumerate(paths)]
    labels = [data.load(path).train.labels for path in paths]
    for i in range(2):
        assert (answers[i].argmax(1) == labels[i]).mean() > 0.5 > (answers[i].argmax(1) == labels[1 - i]).mean()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_one_network_serves_files_of_the_same_content(tmp_path, cache):
    for i, name in enumerate(("set.npz", "copy.npz")):
        bench(written(tmp_path / name), tmp_path / f"run{i}", teacher_steps=2).teacher(0)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_a_stage_is_refused_when_a_label_has_changed_under_its_path(tmp_path):
    path = written(tmp_path / "set.npz")
    bench(path, tmp_path / "run").stage("other", "count", 0, COUNT, 2)
    bench(path, tmp_path / "run").stage("other", "count", 0, COUNT, 2)
    written(tmp_path / "set.npz", last=8)
    with pytest.raises(core.CheckpointError, match="another configuration"):
        bench(path, tmp_path / "run").stage("other", "count", 0, COUNT, 2)


def test_a_stage_is_refused_when_the_file_of_another_data_set_has_changed(tmp_path):
    config = PoolExtractionSettings(**TINY, pool_dataset=written(tmp_path / "pool.npz"))
    count = lambda: Workbench(config, tmp_path / "run", progress=False).stage("other", "count", 0, COUNT, 2)
    count()
    count()
    written(tmp_path / "pool.npz", turn=1)
    with pytest.raises(core.CheckpointError, match="another configuration"):
        count()


def test_a_stage_is_refused_when_a_picture_of_another_data_set_has_changed(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / "pool" / name).mkdir(parents=True)
        image.new("L", (8, 8), ord(name)).save(tmp_path / "pool" / name / "0.png")
    config = PoolExtractionSettings(**TINY, pool_dataset=str(tmp_path / "pool"))
    count = lambda: Workbench(config, tmp_path / "run", progress=False).stage("other", "count", 0, COUNT, 2)
    count()
    count()
    image.new("L", (8, 8), 3).save(tmp_path / "pool" / "b" / "0.png")
    with pytest.raises(core.CheckpointError, match="another configuration"):
        count()


def test_fingerprints_of_splits():
    images, labels = np.zeros((4, 2, 3, 1), np.uint8), np.arange(4)
    whole = data.Split(images, labels)
    assert whole.fingerprint == data.Split(images.copy(), labels.astype(np.int64)).fingerprint
    others = [
        data.Split(images, labels[::-1]),
        data.Split(images.reshape(4, 3, 2, 1), labels),
        data.Split(images.astype(np.float32), labels),
        data.Split(images + 1, labels),
        whole.subset(3),
    ]
    assert len({split.fingerprint for split in (whole, *others)}) == 6


def test_what_extraction_takes_from_other_presets_decides_stages_and_is_written_down(tmp_path, monkeypatch):
    settings = lambda: recipe("watermark-removal").settings("digits", attacks=("knockoff",), extraction_rows=2000)
    before = settings()
    knockoff = as_written(before)["extractions"]["knockoff"]
    assert knockoff["attack"]["clone"]["steps"] == before.extractions["knockoff"]["attack"]["clone"]["steps"] > 0
    assert {"pool_dataset", "reveal", "attack"} <= set(knockoff)
    assert "teacher_steps" not in knockoff, "the removal's own"
    stage = lambda config: Workbench(config, tmp_path, progress=False).stage("other", "count", 0, COUNT, 2)
    stage(before)
    stage(settings())
    own = recipe("knockoff").settings("digits").attack
    changed = dataclasses.replace(own, clone=dataclasses.replace(own.clone, learning_rate=0.0123))
    monkeypatch.setitem(
        recipe("knockoff").presets, "digits", {**recipe("knockoff").presets["digits"], "attack": changed}
    )
    assert "0.0123" in json.dumps(as_written(settings()))
    with pytest.raises(core.CheckpointError, match="another configuration"):
        stage(settings())
    assert recipe("watermark-removal").settings("digits", attacks=("ftal",)).extractions == {}


def test_the_second_process_in_a_run_directory_is_told_at_once(tmp_path):
    with alone(tmp_path / "run"), pytest.raises(core.CheckpointError, match=rf"process \d+ .* at work in {tmp_path}"):
        run_recipe(recipe("zskd"), recipe("zskd").settings("digits"), out=tmp_path, data_dir="nowhere", resume=True)
    assert not (tmp_path / "config.json").exists()


def test_stages_of_different_seeds_and_names_draw_differently(tmp_path):
    made = bench("digits", tmp_path)
    keys = [made.key(seed, name) for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 4


def test_a_recorded_network_of_the_first_seed_is_kept_whole(tmp_path):
    """What `dfke_jax.load` reads from the run's directory has the accuracy that the run reports."""
    place = bench(written(tmp_path / "a" / "x.npz"), tmp_path / "run", seeds=2)
    for seed in (0, 1):
        run = Run(place, seed, [Arm("teacher", "Teacher", "teacher")])
        run.record("teacher", run.teacher)
        if seed == 0:
            recorded = run.arms["teacher"].accuracy[0]
    assert [path.name for path in (tmp_path / "run" / "models").iterdir()] == ["teacher"]
    found, test = dfke_jax.load(tmp_path / "run" / "models" / "teacher"), place.dataset.test
    assert 100 * np.mean(found.predict(test.images).argmax(1) == test.labels) == pytest.approx(recorded, abs=1e-3)
    assert json.loads((tmp_path / "run/models/teacher/model.json").read_text())["made_by"]["arm"] == "teacher"
