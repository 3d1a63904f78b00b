"""The oracle in both forms: order, what is revealed, and what it refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.oracle import (
    DEFENCES,
    ConfidenceMask,
    GaussianNoise,
    HostOracle,
    Oracle,
    Reveal,
    ReverseSigmoid,
    Rounding,
    Temperature,
    TopK,
    ZerothOrderWarning,
    check_zeroth_order,
    defence,
    explanation_oracle,
    from_function,
    oracle_for,
)

SHAPE = (5, 4, 2)
LISTS = (
    (),
    (Temperature(2.0),),
    (ReverseSigmoid(), GaussianNoise(0.1, seed=7)),
    (TopK(2),),
    (Rounding(1, renormalise=False),),
)
REVEALS = (
    Reveal("logits"),
    Reveal(),
    Reveal(decimals=2),
    Reveal("top_k", k=2),
    Reveal("top_k", k=2, renormalise=True),
    Reveal("label"),
)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_without_defences_logits_go_out_untouched(victim, rows):
    oracle = oracle_for(victim, Reveal("logits"))
    np.testing.assert_array_equal(oracle(rows), victim(rows))
    np.testing.assert_allclose(oracle_for(victim)(rows), softmax(np.asarray(victim(rows))), rtol=1e-5)
    label = oracle_for(victim, Reveal("label"))(rows)
    np.testing.assert_array_equal(label, np.asarray(victim(rows)).argmax(1))
    assert label.dtype == jnp.int32


def test_the_order_is_softmax_then_defences_as_listed_then_reveal(victim, rows):
    flat, mask = Temperature(3.0), ConfidenceMask(0.22, renormalise=False)
    p = softmax(np.asarray(victim(rows)))
    temper = lambda p: p ** (1 / 3) / (p ** (1 / 3)).sum(1, keepdims=True)
    masked = lambda p: np.where(p >= 0.22, p, 0)
    one, two = masked(temper(p)).round(2), temper(masked(p)).round(2)
    assert np.abs(one - two).max() > 0.1
    np.testing.assert_allclose(oracle_for(victim, Reveal(decimals=2), (flat, mask))(rows), one, atol=1e-6)
    np.testing.assert_allclose(oracle_for(victim, Reveal(decimals=2), (mask, flat))(rows), two, atol=1e-6)


def test_defended_logits_are_logarithms_of_defended_probabilities(victim, rows):
    found = np.asarray(oracle_for(victim, Reveal("logits"), (Temperature(2.0),))(rows))
    np.testing.assert_allclose(softmax(found), softmax(np.asarray(victim(rows)) / 2), rtol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    masked = np.asarray(oracle_for(victim, Reveal("logits"), (TopK(1),))(rows))
    assert np.isfinite(masked).all()


PAIRS = [(Reveal(), defences) for defences in LISTS] + list(zip(REVEALS, (*LISTS[1:], (), ()), strict=True))


@pytest.mark.parametrize(("reveal", "defences"), PAIRS)
def test_the_host_form_answers_as_the_traced_form(victim, rows, reveal, defences):
    compiled = jax.jit(lambda classifier, x: classifier(x))
    host = HostOracle(from_function(lambda x: compiled(victim, x), SHAPE, 4, gives="logits"), defences, reveal)
    traced = oracle_for(victim, reveal, defences)
    found, expected = host(rows), jax.jit(lambda oracle, x: oracle(x))(traced, rows)
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=2e-5)
    shown = [{name: value for name, value in o.describe().items() if name != "victim"} for o in (host, traced)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0)])
def test_uint8_transport_is_an_image_file(victim, box):
    low, high = box
    x = np.random.default_rng(0).uniform(low - 0.1, high + 0.1, (6, *SHAPE)).astype(np.float32)
    stored = np.clip(np.round((x.astype(np.float64) - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    loaded = (stored / 255.0 * (high - low) + low).astype(np.float32)
    oracle = oracle_for(victim, Reveal("logits"), transport="uint8", box=box)
    np.testing.assert_allclose(oracle.received(x), loaded, atol=1e-6)
    np.testing.assert_allclose(oracle(x), victim(loaded), atol=1e-4)
    again = oracle.received(oracle.received(x))
    np.testing.assert_array_equal(again, oracle.received(x), "a quantised row stays as it is")
    host = HostOracle(from_function(victim, SHAPE, 4, gives="logits"), (), Reveal("logits"), transport="uint8", box=box)
    np.testing.assert_allclose(host(x), oracle(x), atol=1e-5)


def begin(key):
    return {"weights": jax.random.normal(key, (40, 4))}


def ask(key, state):
    return state, jax.random.uniform(key, (6, *SHAPE))


def tell(key, state, rows, answers):
    flat = rows.reshape(6, -1)
    error = jax.nn.softmax(flat @ state["weights"]) - answers
    weights = state["weights"] - 0.1 * flat.T @ error
    return {"weights": weights}, {"loss": jnp.square(error).mean()}


ATTACK = core.Attack(Partial(begin), Partial(ask), Partial(tell))


def test_an_attack_runs_against_both_forms_alike(victim):
    key, defences = jax.random.key(5), (GaussianNoise(0.1), ReverseSigmoid())
    traced = core.run(core.against(ATTACK, oracle_for(victim, Reveal(), defences)), key, 4)
    host = oracle_for(from_function(victim, SHAPE, 4, gives="logits"), Reveal(), defences)
    hosted = core.run(core.against(ATTACK, host, host=True), key, 4)
    np.testing.assert_allclose(traced.state["weights"], hosted.state["weights"], atol=1e-5)
    undefended = core.run(core.against(ATTACK, oracle_for(victim)), key, 4)
    assert np.abs(undefended.state["weights"] - traced.state["weights"]).max() > 1e-3


def test_parameters_and_numbers_of_defences_are_arguments_of_one_program(victim, rows):
    oracle = oracle_for(victim, Reveal(), (ReverseSigmoid(beta=0.5),))
    method = core.against(ATTACK, oracle)
    assert not jax.tree_util.all_leaves([oracle])
    leaves = jax.tree.leaves(method.step)
    assert any(leaf is victim.head_kernel for leaf in leaves)
    assert 0.5 in [leaf for leaf in leaves if isinstance(leaf, float)]
    traces = []

    @jax.jit
    def program(oracle, x):
        traces.append(1)
        return oracle(x)

    weak = program(oracle, rows)
    strong = program(oracle.replace(defences=(ReverseSigmoid(beta=1.0),)), rows)
    scaled = program(
        oracle.replace(victim=victim.replace(variables=jax.tree.map(lambda x: 2 * x, victim.variables))), rows
    )
    assert len(traces) == 1
    assert np.abs(weak - strong).max() > 0.01
    assert np.abs(weak - scaled).max() > 0.01


def constants(jaxpr):
    """Bytes of the constants of a program, of those inside it too."""
    total = sum(np.asarray(value).nbytes for value in getattr(jaxpr, "consts", ()))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        parts = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        total += sum(constants(part) for part in parts if hasattr(part, "eqns"))
    return total


def test_nothing_is_baked_into_the_program(victim, other, rows):
    models = {"misinformation": other, "proxy": other}
    every = [defence(name, models) for name in DEFENCES] + [defence("prediction_poisoning:keep_argmax=true", models)]
    oracle = explanation_oracle(oracle_for(victim, Reveal(decimals=3), every, transport="uint8"))
    assert constants(jax.make_jaxpr(lambda oracle, x: oracle(x))(oracle, rows)) < 300


def test_a_sweep_over_a_defence_is_a_vmap(victim, rows):
    betas = jnp.array([0.1, 0.5, 1.0])
    sweep = jax.vmap(lambda beta: oracle_for(victim, Reveal(), (ReverseSigmoid(beta),))(rows))(betas)
    for beta, found in zip(betas, sweep, strict=True):
        np.testing.assert_allclose(found, oracle_for(victim, Reveal(), (ReverseSigmoid(float(beta)),))(rows), atol=1e-6)


def test_a_description_states_what_a_result_needs(victim):
    oracle = oracle_for(victim, Reveal("top_k", k=2, decimals=3), (defence("reverse_sigmoid:beta=0.5"),))
    assert oracle.describe() == {
        "kind": "top_k",
        "decimals": 3,
        "k": 2,
        "renormalise": False,
        "defences": [{"name": "reverse_sigmoid", "beta": 0.5, "gamma": 0.1}],
        "transport": "float32",
        "victim": "MLP",
        "num_classes": 4,
        "input_shape": [5, 4, 2],
    }


def linear(weights, rows):
    return rows.reshape(len(rows), -1) @ weights


def test_any_callable_pytree_is_traced(rows):
    weights = jax.random.normal(jax.random.key(0), (40, 3))
    oracle = oracle_for(Partial(linear, weights), Reveal("logits"), input_shape=SHAPE)
    assert isinstance(oracle, Oracle)
    assert oracle.num_classes == 3
    np.testing.assert_allclose(oracle(rows), rows.reshape(9, -1) @ np.asarray(weights), rtol=1e-4)


def test_the_box_of_a_classifier_is_its_own(victim):
    import dataclasses

    wide = victim.replace(preprocessing=dataclasses.replace(victim.preprocessing, box=(-1.0, 1.0)))
    assert oracle_for(wide).box == (-1.0, 1.0)
    assert oracle_for(wide, box=(0.0, 2.0)).box == (0.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"victim": lambda x: x}, "from_jax"),
        ({"victim": 3}, "from_jax"),
        ({"victim": Partial(linear, jnp.ones((40, 3)))}, "input_shape"),
        ({"victim": Partial(linear, jnp.ones((40, 3))), "input_shape": SHAPE, "num_classes": 5}, "5 classes"),
        ({"num_classes": 5}, "5 classes"),
        ({"defences": ("rounding",)}, "Defence values"),
        ({"transport": "png"}, "transport"),
        ({"box": (1.0, 0.0)}, "low < high"),
        ({"gives": "label", "reveal": Reveal("label")}, "logits or probabilities"),
        ({"gives": "probabilities", "reveal": Reveal("logits")}, "cannot reveal logits"),
    ],
)
def test_what_does_not_fit_is_refused(victim, arguments, message):
    with pytest.raises(core.InputError, match=message):
        oracle_for(**{"victim": victim, **arguments})


def test_rows_of_another_shape_are_refused(victim):
    for oracle in (oracle_for(victim), oracle_for(from_function(victim, SHAPE, 4))):
        with pytest.raises(core.InputError, match=r"rows must be \(B, 5, 4, 2\)"):
            oracle(np.zeros((3, 4, 5, 2), np.float32))
    with pytest.raises(core.InputError, match="1 of 3 rows contain NaN"):
        oracle(np.array([np.nan, 0, 0], np.float32)[:, None, None, None] * np.ones(SHAPE, np.float32))


def test_labels_alone_can_be_neither_defended_nor_widened(rows):
    host = from_function(lambda x: np.arange(len(x)) % 4, SHAPE, 4, gives="label")
    np.testing.assert_array_equal(oracle_for(host)(rows), np.arange(9) % 4)
    for reveal, defences in ((Reveal(), ()), (Reveal("label"), (Temperature(),))):
        with pytest.raises(core.InputError, match="labels alone"):
            oracle_for(host, reveal, defences)
    with pytest.raises(core.InputError, match="gives label"):
        oracle_for(host, gives="logits")


def numbers(oracle, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_zeroth_order(oracle, *arguments)
    assert all(issubclass(warning.category, ZerothOrderWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_finite_differences_through_labels_are_an_error(victim):
    for oracle in (Reveal("label"), oracle_for(victim, Reveal("label"))):
        with pytest.raises(core.InputError, match="hard labels"):
            check_zeroth_order(oracle, 1e-3, 40)
    for epsilon, dimension in ((0.0, 40), (1e-3, 0)):
        with pytest.raises(core.InputError, match="epsilon must be positive"):
            check_zeroth_order(Reveal(), epsilon, dimension)


def test_finite_differences_through_coarse_answers_are_warned_of_with_the_numbers(victim):
    assert numbers(oracle_for(victim), 1e-3, 3072) == []
    (text,) = numbers(Reveal(decimals=4), 1e-3, 3072)
    assert "1.8e-05" in text  # 1e-3 / sqrt(3072)
    assert "rounded to 0.0001" in text
    assert "5.54" in text  # 1e-4 / 1.80e-5
    (text,) = numbers(oracle_for(victim, transport="uint8"), 1e-3, 3072)
    assert "0.0039" in text
    assert "217" in text  # (1/255) / 1.80e-5
    (text,) = numbers(oracle_for(victim, Reveal(), (GaussianNoise(0.02), ReverseSigmoid())), 1e-3, 3072)
    assert "gaussian_noise of 0.02" in text
    (text,) = numbers(oracle_for(victim, Reveal(), (Rounding(3),)), 1e-3, 3072)
    assert "rounding of 0.001" in text
    assert len(numbers(oracle_for(victim, Reveal(decimals=2), (Rounding(3),), transport="uint8"), 1e-3, 3072)) == 3
    # A box twice as wide has levels twice as far apart; a step that is large enough says nothing.
    assert numbers(oracle_for(victim, transport="uint8"), 0.03, 49) == []
    assert len(numbers(oracle_for(victim, transport="uint8", box=(-1.0, 1.0)), 0.03, 49)) == 1
    assert numbers(Reveal(decimals=4), 1.0, 100) == []


def test_the_numbers_are_the_differences_that_are_lost(victim):
    """Where the warning says that a gradient is too short, rounded answers do not move; where it is long enough, they do."""
    direction = np.zeros((1, *SHAPE), np.float32)
    direction[0, 0, 0, 0] = 1
    x = np.full((1, *SHAPE), 0.5, np.float32)
    slope = np.abs(np.asarray(jax.jvp(oracle_for(victim), (x,), (direction,))[1])).max()
    rounded = oracle_for(victim, Reveal(decimals=2))
    moves = lambda step: bool(np.abs(np.asarray(rounded(x + step * direction) - rounded(x))).max() > 0)
    assert not moves(0.01 * 0.01 / slope)
    assert moves(3 * 0.01 / slope)


def test_a_label_behind_rounding_is_the_victims_choice_among_the_tied(victim):
    rows = jax.random.uniform(jax.random.key(9), (400, *SHAPE))
    values = np.asarray(victim(rows))
    rounded = softmax(values).round(1)
    tied = (rounded == rounded.max(1, keepdims=True)).sum(1) > 1
    assert tied.mean() > 0.02, "no ties to break"
    found = oracle_for(victim, Reveal("label"), (Rounding(1),))(rows)
    np.testing.assert_array_equal(found[tied], values.argmax(1)[tied])
    # what a defence makes the largest all the same is revealed
    swapped = oracle_for(victim, Reveal("label"), (Temperature(1e9), Rounding(0)))(rows)
    np.testing.assert_array_equal(swapped, values.argmax(1))
