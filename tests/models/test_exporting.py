"""Models taken away: every format is read again by what reads it, and is the same function to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import cli, nn
from dfke_jax.core.errors import CheckpointError, InputError, UnknownNameError
from dfke_jax.models import FORMATS, export, open_model
from dfke_jax.models.exporting import _TORCH, METADATA
from dfke_jax.nn.alexnet import AlexNet
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.lenet import LeNet5
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.resnet import ResNet
from dfke_jax.nn.two_conv import TwoConv
from dfke_jax.nn.vgg import VGG
from dfke_jax.nn.wide_resnet import WideResNet

CHANNELS = Preprocessing((12, 10), "bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
NETWORKS = {
    "dense": (MLP(3, (5,), batch_norm=True), (7, 6, 3), Preprocessing((4, 9), "bilinear", mean=(0.2,))),
    "lenet": (LeNet5(3, (2, 3), (8, 4), batch_norm=True), (28, 28, 1), Preprocessing((32, 32), box=(-1.0, 1.0))),
    "two_conv": (TwoConv(3, (2, 3), 4), (7, 9, 3), Preprocessing((9, 10), "nearest", std=(0.5,))),
    "resnet": (ResNet(3, (1, 2), (4, 6)), (9, 8, 3), CHANNELS),
    "wide_resnet": (WideResNet(3, 10, 1), (8, 8, 3), Preprocessing(mean=(0.5,), std=(0.25,))),
    "vgg": (VGG(3, (1, 1, 1, 1, 1), (2, 3, 4, 5, 6)), (16, 16, 1), Preprocessing()),
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of other libraries


def classifier(name):
    """With statistics and biases other than those of the beginning."""
    module, shape, preprocessing = NETWORKS[name]
    made = Classifier.create(module, jax.random.key(0), shape, preprocessing)
    moved = lambda leaf: leaf + 0.1 * jnp.abs(jax.random.normal(jax.random.key(leaf.size), leaf.shape))
    return made.replace(variables=jax.tree.map(moved, made.variables))


def same(made, where, **declared):
    """Whether what is read again answers as the original does."""
    low, high = made.preprocessing.box
    rows = np.random.default_rng(0).uniform(low, high, (5, *made.input_shape)).astype(np.float32)
    with open_model(where, **declared, box=made.preprocessing.box) as model:
        found = model(rows)
    expected = made.predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, 0).max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch(tmp_path, name):
    pytest.importorskip("torch")
    made = classifier(name)
    weights, source = export(made, "torch", tmp_path / "net.pt")
    assert "import dfke" not in source.read_text()
    same(made, f"{source}:net", weights=str(weights), input_shape=made.input_shape)


def test_every_network_with_a_counterpart_is_tested():
    assert {type(module).__name__ for module, _, _ in NETWORKS.values()} == set(_TORCH)


@pytest.mark.parametrize("name", ["dense", "resnet"])
def test_safetensors(tmp_path, name):
    """The file says what it holds: it is opened alone, as a white box."""
    load = pytest.importorskip("safetensors.numpy").load_file
    made = classifier(name)
    (file,) = export(made, "safetensors", tmp_path / "net.safetensors")
    same(made, file)
    assert open_model(file).classifier.preprocessing == made.preprocessing
    np.testing.assert_array_equal(load(file)["params/head/kernel"], made.variables["params"]["head"]["kernel"])
    with pytest.raises(InputError, match="has classes 3, and 4 is declared"):
        open_model(file, num_classes=4)


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_stablehlo(tmp_path, name):
    pytest.importorskip("flatbuffers")
    made = classifier(name)
    (file,) = export(made, "stablehlo", tmp_path / "net.stablehlo")
    same(made, file, trusted=True)
    with pytest.raises(InputError, match="may call foreign code"):
        open_model(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as a program"):
        open_model(file, trusted=True)


@pytest.mark.slow  # jax2onnx takes half a minute to be imported
@pytest.mark.parametrize("name", ["dense", "lenet", "resnet"])
def test_onnx(tmp_path, name):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    made = classifier(name)
    (file,) = export(made, "onnx", tmp_path / "net.onnx")
    same(made, file, layout="NHWC")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in nn.names() if type(nn.build(name)).__name__ in _TORCH])
def test_every_network_of_the_registry(tmp_path, name):
    pytest.importorskip("torch")
    info = nn.describe(name)
    made = Classifier.create(nn.build(name), jax.random.key(1), info.input_shape)
    weights, source = export(made, "torch", tmp_path / "net.pt")
    same(made, f"{source}:net", weights=str(weights), input_shape=made.input_shape)
    (file,) = export(made, "stablehlo", tmp_path / "net.stablehlo")
    same(made, file, trusted=True)


@pytest.mark.parametrize("said", ["[1]", '"text"', "3", "{", '{"module": 1}'])
def test_a_file_that_says_nothing_sound_of_itself_is_refused(tmp_path, said):
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"params/head/kernel": np.zeros((2, 3), np.float32)}, tmp_path / "m.safetensors", {METADATA: said})
    with pytest.raises(CheckpointError):
        open_model(tmp_path / "m.safetensors")


def test_what_cannot_be_exported_is_said(tmp_path):
    made = classifier("dense")
    with pytest.raises(UnknownNameError, match="unknown format 'tflite'"):
        export(made, "tflite", tmp_path / "m")
    pytest.importorskip("torch")
    other = Classifier.create(AlexNet(3, (1, 1, 1, 1, 1), (2, 2)), jax.random.key(0), (32, 32, 1))
    with pytest.raises(InputError, match="AlexNet has no counterpart in PyTorch"):
        export(other, "torch", tmp_path / "m.pt")
    (tmp_path / "m.safetensors").write_text("")
    with pytest.raises(InputError, match="nothing is overwritten"):
        export(made, "safetensors", tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.slow
def test_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    classifier("wide_resnet").save("model")
    assert cli.main(["export", "model", "--to", "torch"]) == 0
    assert "open it  model.py:net with weights=model.pt" in capsys.readouterr().out
    again = ["export", "model.py:net", "--declare", "weights=model.pt", "shape=8,8,3", "--to"]
    assert cli.main([*again, "safetensors", "--out", "x.safetensors"]) == 1
    assert "takes networks of this package" in capsys.readouterr().err
    assert cli.main([*again, "stablehlo", "--out", "x.stablehlo"]) == 0, "another white box"
    same(classifier("wide_resnet"), "x.stablehlo", trusted=True)
    (tmp_path / "f.py").write_text("def f(rows):\n    return rows.reshape(len(rows), -1)[:, :3] - 0.5\n")
    assert cli.main(["export", "f.py:f", "--declare", "shape=2,2,1", "--to", "onnx"]) == 1
    assert "an export to onnx needs a network, and f shows none" in capsys.readouterr().err
    assert set(FORMATS) == {"safetensors", "stablehlo", "onnx", "torch"}
