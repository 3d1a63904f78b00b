"""The promise of every opener, over the table of kinds: the original's answers, and contradictions refused."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_files import example

from dfke_jax.core.errors import DfkeError, InputError
from dfke_jax.models import OPENERS, open_model
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

    small = Classifier.create(MLP(10, (4,)), jax.random.key(0), (8, 8, 1))
    monkeypatch.setattr(opener, "on_digits", lambda name: small)  # what is trained is tested with the command
    return Made("digits", small.predict(np.full((5, 8, 8, 1), 0.5, np.float32)), white=True)


def saved(tmp_path, monkeypatch):
    made = Classifier.create(MLP(CLASSES, (5,)), jax.random.key(0), SHAPE, Preprocessing(mean=(0.5,), std=(0.2,)))
    return Made(str(made.save(tmp_path / "m")), made.predict(ROWS), white=True)


def function(tmp_path, monkeypatch):
    return Made(lambda rows: shares(logits(rows)), shares(logits()), {"input_shape": SHAPE}, "probabilities")


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
    "PyTorch module": (torch_module,),
    "Linen module": (linen,),
    "NNX module": (nnx,),
    "Equinox module": (equinox, equinox_stateful),
    "ART estimator": (art,),
    "host victim": (host_victim,),
    "function": (function,),
}
"""Kind of the table -> what makes one. A new opener has its line here."""
SLOW = {"confined", "torchscript", "exported", "hugging_face"}
MAKERS = [
    pytest.param(maker, id=maker.__name__, marks=[pytest.mark.slow] if maker.__name__ in SLOW else [])
    for makers in KINDS.values()
    for maker in makers
]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of other libraries


@pytest.fixture
def make(tmp_path, monkeypatch):
    yield lambda maker: maker(tmp_path, monkeypatch)
    while SERVED:
        SERVED.pop().__exit__(None, None, None)


def test_every_line_of_the_table_is_tested():
    assert {opener.kind for opener in OPENERS if opener.takes != "refused"} == set(KINDS)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_promise(make, maker):
    """It answers what the original answers, in the same form, and contradictions are refused."""
    made = make(maker)
    with open_model(made.where, **made.declared) as model:
        rows = ROWS if model.input_shape == SHAPE else np.full((5, *model.input_shape), 0.5, np.float32)
        classes = made.expected.shape[1] if made.expected.ndim == 2 else CLASSES
        assert (model.num_classes, model.gives) == (classes, made.gives)
        found = model(rows)
        np.testing.assert_allclose(found, made.expected, rtol=made.tolerance, atol=made.tolerance)
        oracle = model.oracle()
        expected = shares(made.expected) if made.gives == "logits" else made.expected
        np.testing.assert_allclose(oracle(jnp.asarray(rows)), expected, rtol=1e-4, atol=1e-5)
        assert model.name in model.describe()
        assert model.white_box == made.white
        if made.white:
            np.testing.assert_allclose(model.classifier.predict(rows), made.expected, rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(InputError, match=r"needs a network, and .* shows none: .*possible are extraction"):
                model.needed_classifier("distillation")
    other = "probabilities" if made.gives == "logits" else "logits"
    for wrong in ({"num_classes": model.num_classes - 1}, {"gives": other}, {"input_shape": (4, 5, 1)}):
        with pytest.raises(DfkeError):  # an endpoint's own, for rows of another shape
            open_model(made.where, **{**made.declared, **wrong})
    with pytest.raises(InputError, match="has no "):
        open_model(made.where, **{**made.declared, "module": 3, "encoding": "list", "fit": "pad"})


@pytest.mark.parametrize(
    ("answers", "declared", "gives", "said"),
    [
        (lambda z: shares(z), {}, "probabilities", "no softmax is applied"),
        (lambda z: shares(z), {"gives": "logits"}, None, r"probabilities \(rows that sum to one\), and gives=logits"),
        (lambda z: np.log(shares(z)), {}, "logits", "log-probabilities"),
        (lambda z: z, {}, "logits", None),
        (lambda z: z, {"gives": "probabilities"}, None, "answers no probabilities"),
        (lambda z: 1 / (1 + np.exp(-z)), {}, None, "as sigmoids do"),
        (lambda z: 1 / (1 + np.exp(-z)), {"gives": "logits"}, "logits", None),
        (lambda z: z.argmax(1), {"num_classes": 3}, "label", None),
        (lambda z: z.argmax(1), {}, None, "declare classes=K"),
        (lambda z: z.argmax(1) + 9, {"num_classes": 3}, None, "labels from"),
        (lambda z: z.argmax(1), {"gives": "logits", "num_classes": 3}, None, "answers labels, and gives=logits"),
        (lambda z: z, {"gives": "label", "num_classes": 3}, None, "3 numbers a row, and gives=label"),
        (lambda z: z[:, 0], {}, None, "one number a row"),
        (lambda z: z[:, :1], {}, None, "one number a row"),
        (lambda z: z[:1], {}, None, r"shape \(2, K\)"),
        (lambda z: z[:, :, None], {}, None, r"got \(2, 3, 1\)"),
        (lambda z: z * np.nan, {}, None, "NaN or infinity"),
        (lambda z: "text", {}, None, "none of numbers"),
        (lambda z: z.undefined, {}, None, "fails when it is asked two rows of 4×4×1: AttributeError"),
        (lambda z: z, {"num_classes": 4}, None, "has 3 classes, and not 4"),
    ],
)
def test_what_is_answered_is_recognised(answers, declared, gives, said):
    """A module that ends in a softmax is never put through another."""
    function = lambda rows: answers(logits(rows))
    if gives is None:
        with pytest.raises(InputError, match=said):
            open_model(function, input_shape=SHAPE, **declared)
        return
    model = open_model(function, input_shape=SHAPE, **declared)
    assert model.gives == gives
    assert (said is None and not model.notes) or any(said in note for note in model.notes)
    if gives != "label":
        wanted = shares(answers(logits())) if said is None else shares(logits())
        np.testing.assert_allclose(model.oracle()(ROWS), wanted, atol=1e-6)


def test_a_classifier_that_ends_in_a_softmax_is_no_white_box():
    import flax.linen as nn

    class Soft(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.softmax(nn.Dense(CLASSES, name="head")(10 * x.reshape(len(x), -1)))

    model = open_model(Classifier.create(Soft(), jax.random.key(0), SHAPE))
    assert (model.gives, model.white_box, model.classifier) == ("probabilities", False, None)
    np.testing.assert_allclose(np.asarray(model.oracle()(jnp.asarray(ROWS))), model(ROWS), atol=1e-6)


def test_files_that_are_no_models(tmp_path):
    for name in ("m.pkl", "m.joblib", "m.pickle"):
        with pytest.raises(InputError, match=r"runs whatever code its maker put into it.*skops"):
            open_model(tmp_path / name)
    (tmp_path / "text").write_text("")
    with pytest.raises(InputError, match="no model of a known kind; known are digits"):
        open_model(tmp_path / "text")
    with pytest.raises(InputError, match="a int is no model"):
        open_model(3)
    (tmp_path / "broken.py").write_text("1/0")
    with pytest.raises(InputError, match="fails when it is imported: ZeroDivisionError"):
        open_model(f"{tmp_path}/broken.py:f", input_shape=SHAPE)
    (tmp_path / "sound.py").write_text("def f(a, b): pass\nclass Net:\n    def __init__(self, width): pass")
    with pytest.raises(InputError, match="defines no 'g'; it defines f, Net"):
        open_model(f"{tmp_path}/sound.py:g")
    with pytest.raises(InputError, match="needs 'width'"):
        open_model(f"{tmp_path}/sound.py:Net")
    (tmp_path / "m.toml").write_text('model = "sound.py:f"\nshape = [3]\n')
    with pytest.raises(InputError, match=r"declares input_shape \(3,\), and"):
        open_model(tmp_path / "m.toml", input_shape=SHAPE)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_text("")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[onnx\]"'):
        open_model(tmp_path / "m.onnx")


def test_weights_alone_are_no_program(tmp_path):
    torch, module = linear()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="say whose weights they are"):
        open_model(tmp_path / "w.pt", input_shape=SHAPE)
    (tmp_path / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(3, 3)"
    )
    with pytest.raises(InputError, match="are not those of Net"):
        open_model(f"{tmp_path}/net.py:Net", input_shape=SHAPE, weights=str(tmp_path / "w.pt"))


def test_a_skops_file_of_foreign_types_is_refused(tmp_path):
    io = pytest.importorskip("skops.io")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    io.dump(make_pipeline(FunctionTransformer(example), estimator()), tmp_path / "m.skops")
    with pytest.raises(InputError, match=r"types outside scikit-learn.*example"):
        open_model(tmp_path / "m.skops")


def test_an_answer_of_a_foreign_endpoint_at_another_place(make):
    from dfke_jax.core.errors import EndpointError

    made = make(foreign_endpoint)
    for wrong, error, message in (
        ({"answer": "outputs.*.logits"}, EndpointError, "nothing at logits; there is 'scores'|nothing at"),
        ({"key": "other"}, EndpointError, "refused with status 401"),
        ({"encoding": "xml"}, ValueError, "unknown encoding"),
        ({"answer": None}, InputError, "needs request=FIELD and answer=PATH"),
    ):
        with pytest.raises(error, match=message):
            open_model(made.where, **{**made.declared, **wrong})
