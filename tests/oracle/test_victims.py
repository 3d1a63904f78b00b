"""Victims of every make against the original, and what is refused of them."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from dfke_jax import core
from dfke_jax.oracle import (
    HostOracle,
    Ledger,
    Metered,
    Oracle,
    Reveal,
    from_function,
    from_jax,
    from_sklearn,
    from_torch,
    oracle_for,
    traced_torch,
)
from dfke_jax.oracle.victims import PrecisionWarning

SHAPE = (5, 4, 2)
RNG = np.random.default_rng(6)


def affine(weights, rows):
    return rows.reshape(len(rows), -1) @ weights["kernel"] + weights["bias"][None]


def on_the_host(rows):
    return np.asarray(rows).sum((1, 2))


WEIGHTS = {"kernel": jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32), "bias": jnp.arange(3.0)}


def test_a_jax_function_keeps_its_parameters_as_arguments(rows):
    made = from_jax(affine, WEIGHTS, input_shape=SHAPE, num_classes=3)
    assert {id(leaf) for leaf in jax.tree.leaves(made)} == {id(leaf) for leaf in WEIGHTS.values()}
    oracle = oracle_for(made, Reveal("logits"), input_shape=SHAPE)
    assert isinstance(oracle, Oracle)
    expected = rows.reshape(9, -1) @ np.asarray(WEIGHTS["kernel"]) + np.arange(3)
    np.testing.assert_allclose(oracle(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "classes", "message"),
    [
        (on_the_host, None, "from_function"),
        (lambda x: x, None, r"\(2, K\)"),
        (lambda x: x.reshape(len(x), -1), 3, r"\(2, 3\), got \(2, 40\)"),
        (lambda x: jnp.argmax(x.reshape(len(x), -1), -1, keepdims=True), None, "floats, got int32"),
        (lambda x: jnp.log(x.reshape(len(x), -1) - 2), None, "NaN"),
    ],
)
def test_a_jax_function_that_is_no_classifier_is_refused(function, classes, message):
    with pytest.raises(core.InputError, match=message):
        from_jax(function, input_shape=SHAPE, num_classes=classes)


def test_a_function_is_asked_in_batches_and_not_before():
    seen = []

    def predict(rows):
        seen.append(len(rows))
        return np.stack([rows.mean((1, 2, 3)), 1 - rows.mean((1, 2, 3))], 1)

    made = from_function(predict, SHAPE, 2, batch_size=4)
    assert seen == []
    x = RNG.uniform(size=(9, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(made(x)[:, 0], x.mean((1, 2, 3)), rtol=1e-6)
    assert seen == [4, 4, 1]
    assert made.name == "predict"
    assert made(x).dtype == np.float32


@pytest.mark.parametrize(
    ("answer", "gives", "message"),
    [
        (np.ones((9, 4)) / 4, "probabilities", "'bad'.*9 rows of 3 classes"),
        (np.ones((8, 3)) / 3, "probabilities", r"\(8, 3\)"),
        (np.full((9, 3), np.nan), "logits", "NaN"),
        (np.ones((9, 3)), "probabilities", "sum to 1"),
        (np.tile([1.5, -0.5, 0.0], (9, 1)), "probabilities", "non-negative"),
        (np.full(9, 3), "label", r"\[0, 3\)"),
        (np.full(9, 1.0), "label", "integers"),
        (None, "logits", "shape"),
    ],
)
def test_answers_that_are_none_are_refused(rows, answer, gives, message):
    victim = from_function(lambda x: answer, SHAPE, 3, gives=gives, name="bad")
    reveal = Reveal("label" if gives == "label" else "probabilities")
    for ask in (victim, oracle_for(victim, reveal)):
        with pytest.raises(core.InputError, match=message):
            ask(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predict": 3}, "function"),
        ({"gives": "scores"}, "'scores'"),
        ({"num_classes": 1}, "at least 2 classes"),
        ({"input_shape": ()}, r"\(H, W, C\), \(D,\)"),
        ({"input_shape": (5, 0)}, r"\(H, W, C\), \(D,\)"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_victim_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(core.InputError, match=message):
        from_function(**{"predict": on_the_host, "input_shape": SHAPE, "num_classes": 3, **arguments})


def test_what_an_oracle_is_told_must_agree_with_its_victim():
    victim = from_function(on_the_host, SHAPE, 3)
    with pytest.raises(core.InputError, match=r"input_shape is \(5, 4, 2\)"):
        oracle_for(victim, input_shape=(4, 5, 2))
    with pytest.raises(core.InputError, match="num_classes is 3"):
        oracle_for(victim, num_classes=4)
    assert isinstance(oracle_for(victim, num_classes=3), HostOracle)


FLAT = RNG.uniform(size=(120, 40))
SCORES = np.stack([FLAT[:, :13].sum(1), FLAT[:, 13:26].sum(1), FLAT[:, 26:39].sum(1)], 1)
LABELS = SCORES.argmax(1)


def test_scikit_learn_probabilities_in_the_order_of_its_classes(rows):
    names = np.array(["pear", "fig", "apple"])[LABELS]  # sorted: apple, fig, pear
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(FLAT, names)
    victim = from_sklearn(estimator, SHAPE)
    assert victim.classes == ("apple", "fig", "pear")
    expected = estimator.predict_proba(rows.reshape(9, -1).astype(np.float64))
    np.testing.assert_allclose(victim(rows), expected, atol=1e-5)
    found = oracle_for(estimator, Reveal("label"), input_shape=SHAPE)(rows)
    assert [victim.classes[k] for k in found] == estimator.predict(rows.reshape(9, -1)).tolist()
    assert from_sklearn(estimator).input_shape == (1, 1, 40)


def test_scikit_learn_regressors_give_their_numbers():
    FIT = RNG.normal(size=(120, 2))
    several = oracle_for(LinearRegression().fit(FLAT, FIT), Reveal("logits"), input_shape=(40,), transport="float64")
    np.testing.assert_allclose(several(FLAT[:3]), several.victim(FLAT[:3]), rtol=0)
    expected = LinearRegression().fit(FLAT, FIT[:, 1])
    one = oracle_for(make_pipeline(expected), Reveal("logits"), input_shape=(40,), transport="float64")
    assert (several.num_classes, one.num_classes) == (2, 1)
    np.testing.assert_array_equal(one(FLAT[:3]), expected.predict(FLAT[:3])[:, None])
    constant = from_sklearn(LinearRegression().fit(FLAT, np.ones(120)), (40,))
    np.testing.assert_allclose(constant(FLAT), 1, rtol=1e-6)
    with pytest.raises(core.InputError, match="reveal 'logits'"):
        oracle_for(expected, input_shape=(40,))
    with pytest.raises(core.InputError, match="1 numbers of a row, not 3"):
        from_sklearn(expected, num_classes=3)
    with pytest.raises(core.InputError, match="not fitted"):
        from_sklearn(LinearRegression(), (40,))


@pytest.mark.parametrize("shape", [(40,), (8, 5), (2, 5, 2, 2)])
def test_rows_of_any_rank(shape):
    """The same numbers as those of the flat rows, through every make of victim and every layer above it."""
    estimator = LogisticRegression().fit(FLAT, LABELS)
    asked = FLAT[:6].reshape(6, *shape)
    expected = estimator.predict_proba(FLAT[:6])
    ledger = Ledger(budget=6)
    oracle = oracle_for(estimator, input_shape=shape, transport="float64")
    for _ in range(2):
        np.testing.assert_allclose(Metered(oracle, ledger, "v")(asked), expected, rtol=1e-13)
    assert ledger.counts()["rows"] == 6
    host = from_function(lambda x: estimator.predict_proba(x.reshape(len(x), -1)), shape, 3)
    np.testing.assert_allclose(oracle_for(host)(asked), expected, atol=1e-6)
    traced = oracle_for(from_jax(affine, WEIGHTS, input_shape=shape), Reveal("logits"), input_shape=shape)
    flat = FLAT[:6].astype(np.float32) @ np.asarray(WEIGHTS["kernel"]) + np.arange(3)
    np.testing.assert_allclose(Metered(traced, Ledger(), "v")(asked.astype(np.float32)), flat, rtol=1e-4)
    for ask in (host, oracle, traced):
        with pytest.raises(core.InputError, match="rows must be"):
            ask(FLAT[:6].reshape(6, 4, 10).astype(np.float32))


def test_scikit_learn_classes_that_were_never_seen_have_no_probability(rows):
    estimator = LogisticRegression().fit(FLAT, np.array([4, 0, 2])[LABELS])
    assert from_sklearn(estimator, SHAPE).num_classes == 3
    victim = from_sklearn(estimator, SHAPE, num_classes=6)
    found = victim(rows)
    np.testing.assert_allclose(found[:, [0, 2, 4]], estimator.predict_proba(rows.reshape(9, -1)), atol=1e-6)
    assert (found[:, [1, 3, 5]] == 0).all()
    assert victim.classes == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("estimator", [LinearSVC(), SVC()])
def test_scikit_learn_without_probabilities_gives_labels(rows, estimator):
    estimator.fit(FLAT, np.array([4, 0, 2])[LABELS])
    oracle = oracle_for(estimator, input_shape=SHAPE)
    assert oracle.reveal == Reveal("label")
    expected = estimator.predict(rows.reshape(9, -1))
    np.testing.assert_array_equal(np.array([0, 2, 4])[oracle(rows)], expected)
    six = oracle_for(estimator, input_shape=SHAPE, num_classes=6)
    np.testing.assert_array_equal(six(rows), expected)
    with pytest.raises(core.InputError, match="labels alone"):
        oracle_for(estimator, Reveal(), input_shape=SHAPE)


def test_scikit_learn_that_does_not_fit_is_refused():
    fitted = LogisticRegression().fit(FLAT, LABELS)
    for make, message in (
        (lambda: from_sklearn(LogisticRegression()), "not fitted"),
        (lambda: from_sklearn(StandardScaler().fit(FLAT)), "no classifier"),
        (lambda: from_sklearn(fitted, (5, 5, 2)), "takes 40 features"),
        (lambda: from_sklearn(LogisticRegression().fit(FLAT, LABELS + 5), SHAPE, 10 - 3), r"\[5, 6, 7\]"),
    ):
        with pytest.raises(core.InputError, match=message):
            make()


def test_double_precision_goes_all_the_way():
    """d + 1 answers solve a softmax regression: log p − mean log p is linear in the row."""
    estimator = LogisticRegression(C=0.1).fit(FLAT, LABELS)
    oracle = oracle_for(estimator, input_shape=SHAPE, transport="float64")
    x = np.random.default_rng(0).uniform(-1, 1, (41, *SHAPE))
    answers = oracle(x)
    assert answers.dtype == np.float64
    np.testing.assert_allclose(answers, estimator.predict_proba(x.reshape(41, -1)), rtol=1e-14)
    z = np.log(answers)
    solved = np.linalg.solve(np.c_[x.reshape(41, -1), np.ones(41)], z - z.mean(1, keepdims=True))
    true = np.concatenate([estimator.coef_.T, estimator.intercept_[None]])
    np.testing.assert_allclose(solved, true - true.mean(1, keepdims=True), atol=1e-10)
    single = oracle_for(estimator, input_shape=SHAPE)(x)
    assert single.dtype == np.float32


def test_double_precision_inside_jax():
    weights = np.random.default_rng(0).normal(size=(40, 3))
    x = np.random.default_rng(1).uniform(size=(6, *SHAPE))
    with jax.enable_x64(True):
        victim = Partial(lambda w, rows: rows.reshape(len(rows), -1) @ w, jnp.asarray(weights))
        oracle = oracle_for(victim, Reveal("logits"), input_shape=SHAPE, transport="float64")
        found = np.asarray(jax.jit(lambda o, rows: o(rows))(oracle, x))
    np.testing.assert_allclose(found, x.reshape(6, -1) @ weights, rtol=1e-12)
    with pytest.raises(core.InputError, match="enable_x64"):
        oracle(x)


def test_an_object_that_only_looks_like_an_estimator_is_not_taken_for_one():
    class Wrapper:
        classes_, n_features_in_ = np.arange(3), 40

        def get_params(self):
            return {}

        def predict(self, rows):
            return rows

    with pytest.raises(core.InputError, match="cannot tell whether Wrapper runs inside JAX or on the host"):
        oracle_for(Wrapper(), input_shape=SHAPE)


# ---- types of answers


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_answers_of_no_numbers_are_refused_in_words(rows):
    answers = softmax(RNG.normal(size=(9, 3))).astype(object)
    for ask in (from_function(lambda x: answers, SHAPE, 3), Metered(lambda x: answers, Ledger(), reveal=Reveal())):
        with pytest.raises(core.InputError, match="type object, which is none of numbers"):
            ask(rows)


@pytest.mark.parametrize("kind", [np.float16, "bfloat16"])
def test_answers_in_half_precision_are_taken_with_a_word(rows, kind):
    answers = np.asarray(jnp.asarray(softmax(RNG.normal(size=(9, 3))), jnp.dtype(kind)))
    victim = from_function(lambda x: answers, SHAPE, 3, name="halved")
    with pytest.warns(PrecisionWarning, match="'halved' answers in b?float16"):
        found = victim(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, answers.astype(np.float32))


def test_probabilities_are_not_taken_for_logits(rows):
    logits = RNG.normal(size=(9, 3))
    for answers, size in ((softmax(logits), 9), (softmax(logits).astype(np.float32), 4)):
        victim = from_function(lambda x, a=answers: a[: len(x)], SHAPE, 3, gives="logits", batch_size=size, name="soft")
        for ask in (victim, oracle_for(victim, Reveal("logits"))):
            with pytest.raises(core.InputError, match=r"'soft'.*probabilities where logits were declared"):
                ask(rows[:size])
    for true in (logits, np.abs(logits), np.log(softmax(logits)), softmax(logits) + 1e-3):
        given = from_function(lambda x, a=true: a, SHAPE, 3, gives="logits")(rows)
        np.testing.assert_allclose(given, true, rtol=1e-6)


torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_tensors_that_carry_gradients_are_answers(rows, kind):
    weights = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tensors = lambda x: (torch.from_numpy(x.sum((1, 2))).to(kind) @ weights.to(kind)).softmax(1)
    expected = softmax(rows.sum((1, 2), dtype=np.float64) @ np.arange(6.0).reshape(2, 3))
    for ask in (from_function(tensors, SHAPE, 3), Metered(tensors, Ledger(), reveal=Reveal(), num_classes=3)):
        np.testing.assert_allclose(ask(rows), expected, atol=1e-6)
    with pytest.warns(PrecisionWarning, match=r"torch\.bfloat16"):
        from_function(lambda x: tensors(x).bfloat16(), SHAPE, 3)(rows)


def test_a_module_that_ends_in_a_softmax_is_told_so(rows):
    module = torch.nn.Sequential(network(), torch.nn.Softmax(1))
    for make in (from_torch, lambda victim, shape: oracle_for(victim, input_shape=shape)):
        with pytest.raises(core.InputError, match="Sequential answers probabilities where logits were declared"):
            make(module, SHAPE)
    found = oracle_for(module, input_shape=SHAPE, gives="probabilities")(rows)
    np.testing.assert_allclose(found, softmax(by_hand(network(), rows)), atol=1e-6)


def test_a_module_in_half_precision_says_so(rows):
    with pytest.warns(PrecisionWarning, match="float16"):
        victim = from_torch(network().bfloat16(), SHAPE)
    with pytest.warns(PrecisionWarning, match="'Sequential' answers in"):
        found = victim(rows)
    assert found.dtype == np.float32


def test_a_module_is_normalised_where_the_oracle_is_made(rows):
    mean, std = (0.4, 0.6), (0.2, 0.5)
    oracle = oracle_for(network(), Reveal("logits"), input_shape=SHAPE, mean=mean, std=std)
    np.testing.assert_allclose(oracle(rows), by_hand(network(), rows, np.array(mean), np.array(std)), atol=1e-5)
    assert np.abs(oracle(rows) - by_hand(network(), rows)).max() > 0.1
    with pytest.raises(core.InputError, match="3 values for images of 2"):
        oracle_for(network(), input_shape=SHAPE, mean=(0.1, 0.2, 0.3))
    for victim in (from_function(on_the_host, SHAPE, 2), Partial(lambda x: x.sum((1, 2)))):
        with pytest.raises(core.InputError, match="mean belong to a PyTorch module"):
            oracle_for(victim, input_shape=SHAPE, mean=(0.5,))


def network(channels=2):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Dropout(0.5),
        torch.nn.Flatten(), torch.nn.Linear(36, 4),
    )  # fmt: skip
    module[1].running_mean.normal_()
    return module


def by_hand(module, rows, mean=0.0, std=1.0):
    """The network of `network` in NumPy, on NHWC rows."""
    state = {name: value.numpy().astype(np.float64) for name, value in module.state_dict().items()}
    x = (rows.astype(np.float64) - mean) / std
    patches = np.stack([x[:, i : i + 4, j : j + 3] for i in range(2) for j in range(2)], 3)  # (B, 4, 3, 4, C)
    maps = np.einsum("bhwpc,ocp->bohw", patches, state["0.weight"].reshape(3, -1, 4))
    maps = maps + state["0.bias"][:, None, None]
    scale = state["1.weight"] / np.sqrt(state["1.running_var"] + 1e-5)
    maps = (maps - state["1.running_mean"][:, None, None]) * scale[:, None, None] + state["1.bias"][:, None, None]
    return np.maximum(maps, 0).reshape(len(x), -1) @ state["5.weight"].T + state["5.bias"]


def test_a_pytorch_module_answers_in_eval_mode_on_nchw(rows):
    module = network().train()
    before = module[1].running_mean.clone()
    victim = from_torch(module, SHAPE, 4, batch_size=4)
    expected = by_hand(module, rows)
    np.testing.assert_allclose(victim(rows), expected, atol=1e-5)
    module.train()
    np.testing.assert_allclose(victim(rows), expected, atol=1e-5, err_msg="eval mode at every call")
    assert torch.equal(before, module[1].running_mean)
    assert all(p.grad is None for p in module.parameters())
    oracle = oracle_for(module, Reveal("logits"), input_shape=SHAPE)
    np.testing.assert_allclose(oracle(rows), expected, atol=1e-5)
    assert oracle.describe()["victim"] == "Sequential"
    double = oracle_for(from_torch(network().double(), SHAPE), Reveal("logits"), transport="float64")
    np.testing.assert_allclose(double(rows.astype(np.float64)), by_hand(network().double(), rows), rtol=1e-11)


def test_a_pytorch_module_with_normalisation_and_on_nhwc(rows):
    mean, std = (0.4, 0.6), (0.2, 0.5)
    victim = from_torch(network(), SHAPE, mean=mean, std=std)
    np.testing.assert_allclose(victim(rows), by_hand(network(), rows, np.array(mean), np.array(std)), atol=1e-5)

    class Last(torch.nn.Module):
        def forward(self, x):
            assert x.shape[1:] == SHAPE
            return x.sum((1, 2))

    np.testing.assert_allclose(from_torch(Last(), SHAPE, layout="NHWC")(rows), rows.sum((1, 2)), rtol=1e-5)


def test_a_pytorch_module_of_feature_vectors():
    """No layout, and one mean and deviation a feature."""
    module = torch.nn.Linear(6, 3).double()
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    x, mean, std = RNG.normal(size=(9, 6)), tuple(range(6)), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    oracle = oracle_for(module, Reveal("logits"), input_shape=(6,), mean=mean, std=std, transport="float64")
    np.testing.assert_allclose(oracle(x), (x - mean) / std @ weight.T + bias, rtol=1e-13)
    with pytest.raises(core.InputError, match=r"2 values for rows of shape \(6,\)"):
        from_torch(module, (6,), mean=(0.1, 0.2))


def test_a_pytorch_module_that_does_not_fit_is_refused():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x.sum((2, 3)), x

    for make, message in (
        (lambda: from_torch(network(), SHAPE, 5), r"\(2, 5\), got \(2, 4\)"),
        (lambda: from_torch(Pair(), SHAPE), "returns tuple"),
        (lambda: from_torch(torch.nn.Identity(), SHAPE), r"got \(2, 2, 5, 4\)"),
        (lambda: from_torch(network(), SHAPE, layout="CHWN"), "layout"),
        (lambda: from_torch(network(), SHAPE, mean=(0.1, 0.2, 0.3)), "3 values for images of 2"),
        (lambda: from_torch(network(), SHAPE, std=(0.0,)), "positive"),
        (lambda: oracle_for(network()), "input_shape"),
    ):
        with pytest.raises(core.InputError, match=message):
            make()


def converter(offset=0.0, error=None):
    """A stand-in for the package: it converts `network` alone."""

    def t2j(module):
        def call(x, state_dict):
            if error:
                raise error
            s = state_dict
            maps = jax.lax.conv_general_dilated(
                x, s["0.weight"], (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
            )
            each = lambda v: v[None, :, None, None]
            maps = maps + each(s["0.bias"]) - each(s["1.running_mean"])
            maps = maps * each(s["1.weight"] / jnp.sqrt(s["1.running_var"] + 1e-5)) + each(s["1.bias"])
            return jax.nn.relu(maps).reshape(len(x), -1) @ s["5.weight"].T + s["5.bias"][None] + offset

        return call

    return types.SimpleNamespace(t2j=t2j)


def test_a_traced_pytorch_module_is_checked_against_the_original(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch2jax", converter())
    victim = traced_torch(network(), SHAPE, mean=(0.5,), std=(0.25,))
    oracle = oracle_for(victim, Reveal("logits"), input_shape=SHAPE)
    assert isinstance(oracle, Oracle)
    np.testing.assert_allclose(jax.jit(lambda o, x: o(x))(oracle, rows), by_hand(network(), rows, 0.5, 0.25), atol=1e-5)
    assert len(jax.tree.leaves(victim)) == len(network().state_dict())
    monkeypatch.setitem(sys.modules, "torch2jax", converter(offset=0.1))
    with pytest.raises(core.InputError, match="differ by"):
        traced_torch(network(), SHAPE)
    monkeypatch.setitem(sys.modules, "torch2jax", converter(error=NotImplementedError("aten::odd")))
    with pytest.raises(core.InputError, match="NotImplementedError: aten::odd"):
        traced_torch(network(), SHAPE)
    monkeypatch.setitem(sys.modules, "torch2jax", None)
    with pytest.raises(core.InputError, match="pip install torch2jax"):
        traced_torch(network(), SHAPE)


def test_a_pytorch_module_is_traced_by_the_package_itself(rows):
    """Where it is installed: values, and derivatives through what PyTorch computes."""
    pytest.importorskip("torch2jax")
    victim = traced_torch(network(), SHAPE, mean=(0.5,), std=(0.25,))
    np.testing.assert_allclose(jax.jit(victim)(rows), by_hand(network(), rows, 0.5, 0.25), atol=1e-5)
    slope = np.asarray(jax.jit(jax.grad(lambda x: victim(x).sum()))(rows), np.float64)
    total = lambda x: by_hand(network(), x, 0.5, 0.25).sum()
    step = 1e-5 * slope / np.linalg.norm(slope)
    np.testing.assert_allclose((total(rows + step) - total(rows - step)) / 2e-5, np.linalg.norm(slope), rtol=1e-3)
