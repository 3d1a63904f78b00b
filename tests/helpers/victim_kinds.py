"""One small model of every kind that can be opened, all of one linear function where the kind allows it."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.models import export, open_model
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import HostVictim, Reveal, background, create_app

SHAPE, CLASSES = (4, 4, 1), 3
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, CLASSES)).astype(np.float32)
ROWS = RNG.random((5, *SHAPE)).astype(np.float32)


@dataclasses.dataclass
class Made:
    """What is opened, what must be declared of it, and what it answers for `ROWS`."""

    where: Any
    expected: np.ndarray
    declared: dict[str, Any] = dataclasses.field(default_factory=dict)
    gives: str = "logits"
    tolerance: float = 1e-5
    white: bool = False  # white-box methods take it


def logits(rows=ROWS):
    return np.asarray(rows).reshape(len(rows), -1) @ WEIGHTS


def shares(values):
    values = np.exp(values - values.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def linear():
    """The weights as a PyTorch module that takes NCHW of one channel."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, CLASSES, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor(WEIGHTS.T))
    return torch, module


def built_in(tmp_path, monkeypatch):
    from dfke_jax.models.openers import built_in as opener

    small = Classifier.create(MLP(CLASSES, (4,)), jax.random.key(0), SHAPE)
    monkeypatch.setattr(opener, "on_digits", lambda name: small)  # what is trained is tested with the command
    return Made("digits", small.predict(ROWS), white=True)


def saved(tmp_path, monkeypatch):
    made = Classifier.create(MLP(CLASSES, (5,)), jax.random.key(0), SHAPE, Preprocessing(mean=(0.5,), std=(0.2,)))
    return Made(str(made.save(tmp_path / "m")), made.predict(ROWS), white=True)


def of_safetensors(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    made = Classifier.create(MLP(CLASSES, (5,)), jax.random.key(0), SHAPE, Preprocessing(mean=(0.5,), std=(0.2,)))
    return Made(export(made, "safetensors", tmp_path / "m.safetensors")[0], made.predict(ROWS), white=True)


def of_stablehlo(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    made = Classifier.create(MLP(CLASSES, (5,)), jax.random.key(0), SHAPE)
    return Made(export(made, "stablehlo", tmp_path / "m.stablehlo")[0], made.predict(ROWS), {"trusted": True})


def function(tmp_path, monkeypatch):
    return Made(lambda rows: shares(logits(rows)), shares(logits()), {"input_shape": SHAPE}, "probabilities")


def centroids(tmp_path, monkeypatch):
    points = RNG.random((CLASSES, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "m.centroids.npz", centroids=points, width=0.5)
    apart = np.square(ROWS[:, None] - points[None]).sum((2, 3, 4))
    return Made(tmp_path / "m.centroids.npz", -apart / np.float32(0.5))


def host_victim(tmp_path, monkeypatch):
    return Made(
        HostVictim(lambda rows: logits(rows).argmax(1), CLASSES, SHAPE, "label"), logits().argmax(1), gives="label"
    )


def named(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/weights.py").write_text(f"W = {WEIGHTS.tolist()}")
    (tmp_path / "mine/model.py").write_text(
        "import numpy as np\nfrom .weights import W\ndef predict(rows):\n    return rows.reshape(len(rows), -1) @ np.array(W)\n"
    )
    return Made(f"{tmp_path}/mine/model.py:predict", logits(), {"input_shape": SHAPE})


def declaration(tmp_path, monkeypatch):
    (tmp_path / "f.py").write_text(
        f"import numpy as np\npredict = lambda rows: rows.reshape(len(rows), -1) @ np.array({WEIGHTS.tolist()})"
    )
    (tmp_path / "m.toml").write_text('model = "f.py:predict"\nshape = [4, 4, 1]\nclasses = 3\n')
    return Made(tmp_path / "m.toml", logits())


def torch_module(tmp_path, monkeypatch):
    _, module = linear()
    half = (ROWS - 0.5) / 0.25
    return Made(
        module, logits(half), {"input_shape": SHAPE, "mean": (0.5,), "std": (0.25,)}, tolerance=1e-4, white=True
    )


def torch_weights(tmp_path, monkeypatch):
    torch, module = linear()
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    (tmp_path / "net.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3, bias=False))\n"
    )
    return Made(
        f"{tmp_path}/net.py:net", logits(), {"input_shape": SHAPE, "weights": str(tmp_path / "w.pt")}, white=True
    )


def safetensors_weights(tmp_path, monkeypatch):
    made = torch_weights(tmp_path, monkeypatch)
    save = pytest.importorskip("safetensors.torch").save_file
    save(linear()[1].state_dict(), tmp_path / "w.safetensors")
    made.declared["weights"] = str(tmp_path / "w.safetensors")
    return made


def exported(tmp_path, monkeypatch):
    torch, module = linear()
    dynamic = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(module.eval(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    return Made(tmp_path / "net.pt2", logits(), {"trusted": True}, white=True)


def confined(tmp_path, monkeypatch):
    from dfke_jax.models.confined import supported

    if not supported():
        pytest.skip("this system cannot confine a process")
    return Made(exported(tmp_path, monkeypatch).where, logits())


def torchscript(tmp_path, monkeypatch):
    torch, module = linear()
    torch.jit.trace(module.eval(), torch.zeros(2, 1, 4, 4)).save(str(tmp_path / "net.pt"))
    return Made(tmp_path / "net.pt", logits(), {"trusted": True, "input_shape": SHAPE})


def onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, ["rows", 1, 4, 4])],
        [helper.make_tensor_value_info("y", kind, ["rows", CLASSES])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="any may be the channels"):
        open_model(tmp_path / "net.onnx")
    return Made(tmp_path / "net.onnx", logits(), {"input_shape": SHAPE})


def estimator():
    from sklearn.linear_model import LogisticRegression

    rows = RNG.random((60, 16))
    return LogisticRegression().fit(rows, np.arange(60) % CLASSES)


def sklearn(tmp_path, monkeypatch):
    io, made = pytest.importorskip("skops.io"), estimator()
    io.dump(made, tmp_path / "m.skops")
    return Made(tmp_path / "m.skops", made.predict_proba(ROWS.reshape(5, -1)), {"input_shape": SHAPE}, "probabilities")


def sklearn_object(tmp_path, monkeypatch):
    made = estimator()
    return Made(made, made.predict_proba(ROWS.reshape(5, -1)), {"input_shape": SHAPE}, "probabilities")


def linen(tmp_path, monkeypatch):
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"params/head/kernel": WEIGHTS, "params/head/bias": np.zeros(CLASSES, np.float32)}, tmp_path / "w.safetensors")
    (tmp_path / "flat.py").write_text(
        "import flax.linen as nn\nclass Net(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
        "        return nn.Dense(3, name='head')(x.reshape(len(x), -1))\n"
    )
    return Made(
        f"{tmp_path}/flat.py:Net",
        logits(),
        {"input_shape": SHAPE, "weights": str(tmp_path / "w.safetensors")},
        white=True,
    )


def nnx(tmp_path, monkeypatch):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(16, CLASSES, use_bias=False, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(x.reshape(len(x), -1)))

    save = pytest.importorskip("safetensors.numpy").save_file
    save({"head.kernel": WEIGHTS}, tmp_path / "w.safetensors")
    return Made(
        Net(nnx.Rngs(0)), logits(), {"input_shape": SHAPE, "weights": str(tmp_path / "w.safetensors")}, white=True
    )


def equinox(tmp_path, monkeypatch):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        weight: jax.Array

        def __call__(self, x):  # one sample, channels first
            return x.reshape(-1) @ self.weight

    eqx.tree_serialise_leaves(tmp_path / "w.eqx", Net(jnp.asarray(WEIGHTS)))
    return Made(
        Net(jnp.zeros((16, CLASSES))), logits(), {"input_shape": SHAPE, "weights": str(tmp_path / "w.eqx")}, white=True
    )


def equinox_stateful(tmp_path, monkeypatch):
    eqx = pytest.importorskip("equinox")
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(1, axis_name="batch", mode="batch")

    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm
        weight: jax.Array

        def __call__(self, x, state):
            x, state = self.norm(x, state)
            return x.reshape(-1) @ self.weight, state

    _, state = jax.vmap(module, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(
        jnp.ones((2, 1, 4, 4)) / 2, state
    )
    net = Net(module, jnp.asarray(WEIGHTS))
    ask = lambda rows: jax.vmap(lambda x: eqx.nn.inference_mode(net)(x, state)[0])(rows.transpose(0, 3, 1, 2))
    return Made((net, state), np.asarray(ask(ROWS)), {"input_shape": SHAPE}, white=True)


def hugging_face(tmp_path, monkeypatch):
    torch, transformers = linear()[0], pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=4, patch_size=2,
        num_channels=1, num_labels=CLASSES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    said = {"do_normalize": True, "image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(said))
    with torch.no_grad():
        expected = model(torch.tensor((ROWS - 0.5) / 0.5).permute(0, 3, 1, 2)).logits.numpy()
    return Made(tmp_path / "vit", expected)


def art(tmp_path, monkeypatch):
    classification = pytest.importorskip("art.estimators.classification")
    made = classification.BlackBoxClassifierNeuralNetwork(
        lambda rows: shares(logits(rows.transpose(0, 2, 3, 1))),
        (1, 4, 4),
        CLASSES,
        channels_first=True,
        clip_values=(0, 1),
    )
    return Made(made, shares(logits()), gives="probabilities")


def endpoint(tmp_path, monkeypatch):
    pytest.importorskip("httpx")
    app = create_app(
        lambda rows: shares(logits(rows)), input_shape=SHAPE, reveal=Reveal(), num_classes=CLASSES, box=(0.0, 1.0)
    )
    url = served(monkeypatch, app)
    return Made(url, shares(logits()), gives="probabilities")


def foreign_endpoint(tmp_path, monkeypatch):
    """As TensorFlow Serving answers, behind a name and a place."""
    pytest.importorskip("httpx")
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def predict(request):
        if request.headers.get("authorization") != "Bearer k":
            return JSONResponse({"error": "who?"}, 401)
        rows = np.asarray((await request.json())["inputs"]["images"], np.float32)
        return JSONResponse({"outputs": [{"scores": row.tolist()} for row in logits(rows)]})

    url = served(monkeypatch, Starlette(routes=[Route("/v2", predict, methods=["POST"])]))
    mapping = {"request": "inputs.images", "answer": "outputs.*.scores", "input_shape": SHAPE, "key": "k"}
    return Made(f"{url}/v2", logits(), mapping, tolerance=1e-4)


def served(monkeypatch, app):
    """Its address; it is served to the end of the test."""
    context = background(app)
    url = context.__enter__()
    SERVED.append(context)
    return url


SERVED: list[Any] = []

KINDS: dict[str, tuple[Callable[..., Made], ...]] = {
    "built-in": (built_in,),
    "endpoint": (endpoint, foreign_endpoint),
    "declaration": (declaration,),
    "name in a file": (named, torch_weights, safetensors_weights),
    "PyTorch program": (exported, confined, torchscript),
    "ONNX graph": (onnx,),
    "scikit-learn estimator": (sklearn, sklearn_object),
    "Hugging Face model": (hugging_face,),
    "saved model": (saved,),
    "exported model": (of_safetensors,),
    "exported program": (of_stablehlo,),
    "PyTorch module": (torch_module,),
    "Linen module": (linen,),
    "NNX module": (nnx,),
    "Equinox module": (equinox, equinox_stateful),
    "ART estimator": (art,),
    "host victim": (host_victim,),
    "function": (function,),
}
"""Kind of the table -> what makes one. A new opener has its line here."""
SLOW = {"art", "confined", "torchscript", "exported", "hugging_face"}
