"""A saved model is whole: the same function after `save`, a fresh process, and `load`."""

import json
import subprocess
import sys

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfke_jax
from dfke_jax import core, nn
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.models import open_model
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.mlp import MLP

SHAPE = (6, 5, 3)
PREPROCESSING = {
    "none": Preprocessing(),
    "padded": Preprocessing(size=(8, 8)),
    "bilinear": Preprocessing(size=(4, 9), fit="bilinear"),
    "nearest": Preprocessing(size=(9, 4), fit="nearest", mean=(0.5,), std=(0.25,)),
    "by channel": Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1)),
    "box": Preprocessing(size=(7, 7), mean=(0.2,), box=(-1.0, 1.0)),
}
FRESH = """
import sys, json
import jax
import numpy as np
import dfke_jax
for name, wanted in json.load(open(sys.argv[1])).items():
    rows, wanted = np.load(name + ".rows.npy"), np.load(name + ".npy")
    loaded = dfke_jax.load(name)
    apart = abs(loaded.predict(rows) - wanted).max()
    assert apart <= 1e-6 * max(1, abs(wanted).max()), (name, apart)
    with dfke_jax.open_model(name) as opened:  # the same function, and the same bits
        one, other = (jax.tree.flatten(model) for model in (loaded, opened.victim))
        assert one[1] == other[1] and all(map(np.array_equal, one[0], other[0])), name
print("the same")
"""


class Own(flax.linen.Module):
    """Of a class that is not the package's."""

    width: int = 4

    @flax.linen.compact
    def __call__(self, x, *, train=False):
        x = flax.linen.relu(flax.linen.Dense(self.width)(x.reshape(len(x), -1)))
        return flax.linen.Dense(3, name="head")(x)


def classifier(module=None, preprocessing=None, seed=0, shape=SHAPE):
    made = Classifier.create(module or MLP(3, (7,)), jax.random.key(seed), shape, preprocessing)
    moved = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return made.replace(variables=jax.tree.map(moved, made.variables))


def fresh(tmp_path, made):
    """Saves them, and lets another process load them and compare."""
    for name, one in made.items():
        rows = np.random.default_rng(0).random((3, *one.input_shape)).astype(np.float32)
        one.save(tmp_path / name)
        np.save(tmp_path / f"{name}.rows.npy", rows)
        np.save(tmp_path / f"{name}.npy", one.predict(rows))
    (tmp_path / "names.json").write_text(json.dumps({str(tmp_path / name): 0 for name in made}))
    found = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "names.json")], capture_output=True, text=True, check=False
    )
    assert found.stdout == "the same\n", found.stderr


@pytest.mark.slow
def test_every_preprocessing_in_a_fresh_process(tmp_path):
    made = {name: classifier(None, preprocessing) for name, preprocessing in PREPROCESSING.items()}
    made["normalised"] = classifier(MLP(3, (5,), batch_norm=True), PREPROCESSING["box"])
    fresh(tmp_path, made)


@pytest.mark.slow
def test_every_network_in_a_fresh_process(tmp_path):
    made = {}
    for name in nn.names():
        info = nn.describe(name)
        shape = info.input_shape if name != "lstm" else (12, 8, 1)
        made[name] = classifier(nn.build(name, 10), Preprocessing(mean=(0.4,), std=(0.3,)), shape=shape)
    fresh(tmp_path, made)


@pytest.mark.parametrize("name", [*nn.names(), "wrn_10_1", "mlp_20"])
def test_every_network_is_described(name):
    """As text, to the same module and its name again."""
    module = nn.build(name, 7)
    said = json.loads(json.dumps(nn.saved.described(module)))
    assert nn.saved.module_of(said) == module
    assert nn.saved.network_name(module) == name


def test_what_stands_beside_the_arrays(tmp_path):
    place = classifier(nn.build("mlp_small", 4)).save(tmp_path / "m", made_by={"recipe": "test"})
    said = json.loads((place / "model.json").read_text())
    assert said["module"]["network"] == "mlp_small"
    assert (said["num_classes"], said["input_shape"], said["models"]) == (4, [6, 5, 3], None)
    assert said["made_by"]["recipe"] == "test"
    assert said["made_by"]["jax"] == jax.__version__


def test_a_stack_is_saved_as_one(tmp_path):
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(classifier(seed=seed) for seed in range(3)))
    stack.save(tmp_path / "stack")
    found, rows = dfke_jax.load(tmp_path / "stack"), jnp.ones((2, *SHAPE)) / 2
    ask = jax.vmap(lambda one, rows: one(rows), (0, None))
    np.testing.assert_array_equal(ask(found, rows), ask(stack, rows))
    with pytest.raises(InputError, match="a stack of 3 models"):
        open_model(tmp_path / "stack")


def test_a_class_of_ones_own_must_be_given(tmp_path):
    own = classifier(Own(5))
    own.save(tmp_path / "own")
    with pytest.raises(InputError, match="not of this package; give it as module="):
        dfke_jax.load(tmp_path / "own")
    with pytest.raises(InputError, match=r"and module= is a .*MLP"):
        dfke_jax.load(tmp_path / "own", module=MLP(3, (5,)))
    with pytest.raises(CheckpointError, match="arrays are not those of"):
        dfke_jax.load(tmp_path / "own", module=Own(6))
    rows = np.full((2, *SHAPE), 0.5, np.float32)
    np.testing.assert_array_equal(dfke_jax.load(tmp_path / "own", module=Own(5)).predict(rows), own.predict(rows))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"network": "lenet5"}, "has network mlp_7, and lenet5 is declared"),
        ({"num_classes": 4}, "has classes 3, and 4"),
        ({"input_shape": (5, 6, 3)}, "has shape"),
        ({"mean": (0.5,)}, "has mean"),
        ({"fit": "nearest"}, "has fit"),
        ({"box": (0.0, 1.0)}, "has box"),
        ({"gives": "probabilities"}, "no probabilities"),
        ({"layout": "NCHW"}, "has no layout"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_what_contradicts_it_is_refused(tmp_path, declared, message):
    classifier(None, PREPROCESSING["box"]).save(tmp_path / "m")
    with pytest.raises(InputError, match=message):
        open_model(tmp_path / "m", **declared)


def test_what_agrees_with_it_is_taken(tmp_path):
    classifier(None, PREPROCESSING["box"]).save(tmp_path / "m")
    assert open_model(tmp_path / "m", num_classes=3, box=(-1.0, 1.0), mean=(0.2,), size=(7, 7)).white_box


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "of a later version"),
        ({"num_classes": 4}, "4 classes of 1 models are named"),
        ({"module": {"class": "dfke_jax.nn.mlp:jax", "fields": {}}}, "cannot be made"),
        ({"module": {"class": "dfke_jax.nn.mlp:MLP", "fields": {"width": 3}}}, "cannot be made"),
        ({"module": {"class": "dfke_jax.nn.mlp:MLP", "fields": {"units": [9]}}}, "arrays are not those of|not fit"),
        ({"preprocessing": {"size": [2, 2], "crop": 1}}, "does not describe a classifier"),
        ({"arrays": {"params": "float32[2]"}}, "does not fit"),
        ({"arrays": {"params": "number[2]"}}, "names no arrays"),
    ],
)
def test_what_was_changed_is_refused(tmp_path, change, message):
    place = classifier().save(tmp_path / "m")
    said = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps({**said, **change}))
    with pytest.raises(CheckpointError, match=message):
        dfke_jax.load(place)


def test_no_class_is_imported_because_a_file_names_it(tmp_path):
    place = classifier().save(tmp_path / "m")
    said = json.loads((place / "model.json").read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    for name in ("evil:Net", "dfke_jax.nn.../evil:Net", "dfke_jax.nn.mlp:__loader__"):
        (place / "model.json").write_text(json.dumps({**said, "module": {"class": name, "fields": {}}}))
        with pytest.raises((CheckpointError, InputError)):
            dfke_jax.load(place)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    place = classifier().save(tmp_path / "m")
    with pytest.raises(InputError, match="nothing is overwritten"):
        classifier().save(place)
    classifier(seed=1).save(place, overwrite=True)
    rows = np.full((1, *SHAPE), 0.3, np.float32)
    np.testing.assert_array_equal(dfke_jax.load(place).predict(rows), classifier(seed=1).predict(rows))
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="nothing is overwritten"):
        classifier().save(tmp_path / "other", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "other"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        classifier().save(tmp_path / "file" / "m")
    for empty in ("other", "nowhere"):
        with pytest.raises(CheckpointError, match=r"no saved model|there is no model"):
            dfke_jax.load(tmp_path / empty)


@pytest.mark.slow
def test_arrays_alone_are_opened_when_all_is_declared(tmp_path):
    """As `core.save` wrote them, and as older versions served them by guesses."""
    preprocessing = Preprocessing(size=(32, 32), fit="bilinear", mean=(0.5,), std=(0.5,))
    trained = classifier(nn.build("lenet5_half", 3), preprocessing, shape=(8, 8, 1))
    core.save(tmp_path / "old", trained)
    with pytest.raises(CheckpointError, match=r"declare network=..., classes=..., shape=..., fit=... \(and size, mean"):
        dfke_jax.load(tmp_path / "old")
    declared = {"network": "lenet5_half", "num_classes": 3, "input_shape": (8, 8, 1)}
    with pytest.raises(CheckpointError, match=r"declare fit=\.\.\. \(and"):
        open_model(tmp_path / "old", **declared)
    rows = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    found = open_model(tmp_path / "old", **declared, fit="bilinear", mean=(0.5,), std=(0.5,))
    np.testing.assert_array_equal(found.classifier.predict(rows), trained.predict(rows))
