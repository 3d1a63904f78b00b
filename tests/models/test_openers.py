"""The promise of every opener, over the table of kinds: the original's answers, and contradictions refused."""

import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_files import example
from victim_kinds import (
    CLASSES,
    KINDS,
    ROWS,
    SERVED,
    SHAPE,
    SLOW,
    WEIGHTS,
    estimator,
    foreign_endpoint,
    linear,
    logits,
    shares,
)

from dfke_jax.core.errors import DfkeError, InputError
from dfke_jax.models import OPENERS, open_model, to_art
from dfke_jax.models.openers import hugging_face
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal, oracle_for

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
        rows = ROWS
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


def test_a_missing_file_is_said_before_a_missing_library(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    endings = {
        ending
        for opener in OPENERS
        for ending in re.findall(r"FILE(\.\w+)", opener.takes)
        if opener.kind != "name in a file"
    }
    assert endings == {".toml", ".pt2", ".pt", ".pth", ".onnx", ".skops", ".safetensors", ".stablehlo"}
    for ending in (*endings, ".pkl"):
        with pytest.raises(InputError, match=rf"there is no file .*absent\{ending}; (no pickle|give an? )"):
            open_model(tmp_path / f"absent{ending}")
    with pytest.raises(InputError, match=r"there is no file .*absent\.py; write FILE"):
        open_model(f"{tmp_path}/absent.py:Net")
    for ending in (".pt2", ".onnx", ".skops", ".safetensors"):
        (tmp_path / f"m{ending}").write_bytes(b"")
        with pytest.raises(InputError, match=r"needs \w+: `pip install"):
            open_model(tmp_path / f"m{ending}")


def test_files_that_are_no_models(tmp_path):
    for name in ("m.pkl", "m.joblib", "m.pickle"):
        (tmp_path / name).write_bytes(b"")
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


def test_a_model_is_compiled_once_however_often_it_is_asked():
    model = open_model(Classifier.create(MLP(CLASSES, (4,)), jax.random.key(0), SHAPE))
    traced = []
    original = Classifier.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "__call__", lambda self, rows: traced.append(1) or original(self, rows))
        answers = [model(ROWS[:3]) for _ in range(3)]
    assert len(traced) <= 1
    np.testing.assert_array_equal(answers[0], answers[2])


def test_a_module_of_equinox_that_wants_a_key_is_asked_without_one():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        weight: jax.Array
        dropout: eqx.nn.Dropout

        def __call__(self, x, key):
            return self.dropout(x.transpose(1, 2, 0).reshape(-1), key=key) @ self.weight

    model = open_model(Net(jnp.asarray(WEIGHTS), eqx.nn.Dropout(0.5)), input_shape=SHAPE)
    np.testing.assert_allclose(model(ROWS), logits(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.classifier.predict(ROWS), logits(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "given", "shape"),
    [
        ({"image_size": 224, "num_channels": 1}, {"size": 256}, (224, 224, 1)),
        ({}, {"size": 224}, (224, 224, 3)),
        ({}, {"size": {"shortest_edge": 32}}, (32, 32, 3)),
        ({}, {"size": {"height": 32, "width": 64}}, (32, 64, 3)),
        ({"image_size": [20, 30]}, {}, (20, 30, 3)),
        ({}, {}, None),
    ],
)
def test_sizes_as_folders_of_hugging_face_write_them(config, given, shape):
    """Older ones write a number."""
    assert hugging_face._shape(SimpleNamespace(**config), given) == shape


def test_normalisation_as_folders_of_hugging_face_write_it():
    means = {"image_mean": [0.5], "image_std": [0.25]}
    assert hugging_face._normalisation({"do_normalize": True, **means}, "m") == ((0.5,), (0.25,))
    assert hugging_face._normalisation(means, "m") == (None, None)
    with pytest.raises(InputError, match=r"of m normalises images and does not say by which"):
        hugging_face._normalisation({"do_normalize": True}, "m")


@pytest.mark.parametrize("kind", ["logits", "top_k", "probabilities", "label"])
def test_the_toolbox_gets_probabilities_whatever_an_endpoint_reveals(monkeypatch, kind):
    """Without the toolbox: what it is given to call."""
    art = SimpleNamespace(
        BlackBoxClassifierNeuralNetwork=lambda predict, *_, **__: predict,
        ClassifierMixin=type("ClassifierMixin", (), {}),
    )
    monkeypatch.setitem(sys.modules, "art.estimators.classification", art)
    reveal = Reveal(kind, k=2 if kind == "top_k" else None)
    model = open_model(lambda rows: logits(rows), input_shape=SHAPE)
    endpoint = SimpleNamespace(oracle=lambda: model.oracle(reveal), box=(0, 1), num_classes=CLASSES, input_shape=SHAPE)
    answers, whole = to_art(endpoint)(ROWS), shares(logits())
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(answers.argmax(1), whole.argmax(1))
    if kind in ("logits", "probabilities"):
        np.testing.assert_allclose(answers, whole, atol=1e-5)


@pytest.mark.slow  # importing it takes as long as the rest of the file
def test_the_toolbox_and_back(tmp_path):
    """A model of ours in ART, and opened again as what ART has."""
    pytest.importorskip("art")
    model = open_model(lambda rows: shares(logits(rows)), input_shape=SHAPE)
    estimator = to_art(model)
    np.testing.assert_allclose(estimator.predict(ROWS), shares(logits()), atol=1e-6)
    outside = ROWS + np.where(ROWS > 0.5, 1, -1) * np.float32(2e-6)
    np.testing.assert_allclose(estimator.predict(outside), shares(logits()), atol=1e-4)
    with open_model(estimator) as again:
        assert (again.kind, again.gives, again.num_classes) == ("an ART estimator", "probabilities", CLASSES)
        np.testing.assert_allclose(again(ROWS), shares(logits()), atol=1e-6)
    assert oracle_for(estimator).input_shape == SHAPE, "no unfitted estimator of scikit-learn"
    labels = open_model(lambda rows: logits(rows).argmax(1), input_shape=SHAPE, num_classes=CLASSES)
    np.testing.assert_array_equal(to_art(labels).predict(ROWS).argmax(1), logits().argmax(1))


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
