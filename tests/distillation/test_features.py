"""Distillation of hidden layers: hints, attention maps, and relations between features."""

import itertools

import jax
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.data.augment import identity, shift
from dfke_jax.distillation import (
    AttentionSettings,
    RelationSettings,
    attention_distillation,
    hint_training,
    hinted,
    knowledge_distillation,
    relation_distillation,
)
from dfke_jax.distillation.features import shared_layers
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained
from dfke_jax.nn.two_conv import TwoConv

KEY = jax.random.key(31)
SHAPE = (8, 8, 1)
IMAGES = jax.random.uniform(jax.random.key(32), (20, *SHAPE))
TEACHER = Classifier.create(TwoConv(3, (3, 4), 6), jax.random.key(33), SHAPE)
STUDENT = Classifier.create(TwoConv(3, (2, 3), 5), jax.random.key(34), SHAPE)
DENSE = [Classifier.create(MLP(3, (units,)), jax.random.key(units), SHAPE) for units in (4, 6)]  # student, teacher
ONE = {"steps": 4, "batch_size": 5, "augment": identity()}


def rows():
    return IMAGES[jax.random.randint(jax.random.split(KEY, 3)[0], (5,), 0, 20)]


def begun(method):
    state = jax.jit(method.init)(KEY)
    return state, float(jax.jit(method.step)(KEY, state)[1]["loss"])


def kl(student, teacher, tau):
    p, q = (np.exp(z / tau) / np.exp(z / tau).sum(1, keepdims=True) for z in (teacher, student))
    return tau**2 * (p * np.log(p / q)).sum(1).mean()


def shown(state, student=STUDENT, teacher=TEACHER):
    ours, theirs = trained(student, state).activations(rows()), teacher.activations(rows())
    return ({name: np.asarray(x, np.float64) for name, x in side.items()} for side in (ours, theirs))


@pytest.mark.parametrize("layers", [(), pytest.param(("conv2",), marks=pytest.mark.slow)])
def test_the_attention_loss_written_out(layers):
    settings = AttentionSettings(attention=70.0, layers=layers, temperature=2.0)
    state, loss = begun(attention_distillation(STUDENT, TEACHER, IMAGES, settings, **ONE))
    ours, theirs = shown(state)
    expected = kl(ours["logits"], theirs["logits"], 2.0)
    for name in layers or ("conv1", "conv2"):
        maps = [np.square(side[name]).mean(-1).reshape(5, -1) for side in (ours, theirs)]
        maps = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in maps]
        expected += 70 * np.square(maps[0] - maps[1]).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_relations_written_out():
    settings = RelationSettings(distance=3.0, angle=7.0, response=0.5, temperature=2.0)
    state, loss = begun(relation_distillation(*DENSE, IMAGES, settings, **ONE))
    ours, theirs = shown(state, *DENSE)
    huber = lambda d: d**2 / 2 if abs(d) <= 1 else abs(d) - 0.5
    pairs = list(itertools.permutations(range(5), 2))
    far = [[np.linalg.norm(x[i] - x[j]) for i, j in pairs] for x in (ours["features"], theirs["features"])]
    far = [np.array(side) / np.mean(side) for side in far]

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    turns = [
        huber(cosine(ours["features"], *place) - cosine(theirs["features"], *place))
        for place in itertools.permutations(range(5), 3)
    ]
    expected = 3 * np.mean([huber(a - b) for a, b in zip(*far, strict=True)]) + 7 * np.mean(turns)
    expected += 0.5 * kl(ours["logits"], theirs["logits"], 2.0)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_without_their_terms_they_are_the_control(close):
    """The same batches, the same answers, the same student as plain distillation."""
    options = {"steps": 3, "batch_size": 5, "optimizer": "sgd", "augment": shift(1)}
    plain = core.run(knowledge_distillation(STUDENT, TEACHER, IMAGES, temperature=3.0, **options), KEY, 3, chunk=3)
    attention = AttentionSettings(attention=0.0, temperature=3.0)
    relation = RelationSettings(distance=0.0, angle=0.0, temperature=3.0)
    for method in (
        attention_distillation(STUDENT, TEACHER, IMAGES, attention, **options),
        relation_distillation(STUDENT, TEACHER, IMAGES, relation, **options),
    ):
        close(core.run(method, KEY, 3, chunk=3).state.variables, plain.state.variables)


def test_a_hint_moves_the_lower_half_alone():
    method = hint_training(STUDENT, TEACHER, IMAGES, steps=40, batch_size=20, learning_rate=0.03)
    first, step, losses = jax.jit(method.init)(KEY), jax.jit(method.step), []
    state = first
    for i in range(40):
        state, metrics = step(jax.random.fold_in(KEY, i), state)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    before, after = first.variables["params"], state.variables["params"]
    upper = {"dense1", "head"}  # above conv2, the middle of conv1, conv2 and dense1
    assert shared_layers(TEACHER, STUDENT) == ("conv1", "conv2", "dense1")
    assert set(before["student"]) == {"conv1", "conv2", *upper}
    for name, layer in before["student"].items():
        moved = max(
            float(np.abs(a - b).max())
            for a, b in zip(*map(jax.tree.leaves, (layer, after["student"][name])), strict=True)
        )
        assert moved < 1e-6 if name in upper else moved > 1e-3, name


def test_the_hint_written_out():
    method = hint_training(STUDENT, TEACHER, IMAGES, layer="conv2", **ONE)
    state, loss = begun(method)
    params = state.variables["params"]
    ours = np.asarray(hinted(STUDENT, state).activations(rows())["conv2"], np.float64)
    theirs = np.asarray(TEACHER.activations(rows())["conv2"], np.float64)
    (regressor,) = params["regressor"].values()
    fitted = ours @ np.asarray(regressor["kernel"][0, 0]) + np.asarray(regressor["bias"])
    assert fitted.shape == theirs.shape == (5, 4, 4, 4)
    assert loss == pytest.approx(np.square(fitted - theirs).mean() / 2, rel=1e-4)


def test_the_second_stage_begins_where_the_first_ended(close):
    hints = core.run(hint_training(STUDENT, TEACHER, IMAGES, **ONE), KEY, 4, chunk=4).state
    start = hinted(STUDENT, hints)
    assert jax.tree.structure(start.variables) == jax.tree.structure(STUDENT.variables)
    close(knowledge_distillation(start, TEACHER, IMAGES, fine_tune=True).init(KEY).variables, start.variables)


def test_a_dense_layer_is_hinted_too():
    teacher, student = (Classifier.create(MLP(3, units), KEY, SHAPE) for units in ((6, 5), (3, 4)))
    assert shared_layers(teacher, student) == ("dense1", "dense2")
    state = hint_training(student, teacher, IMAGES).init(KEY)
    (regressor,) = state.variables["params"]["regressor"].values()
    assert regressor["kernel"].shape == (3, 6), "the lower of two in the middle"


def test_refusals():
    dense = Classifier.create(MLP(3, (4,)), KEY, SHAPE)
    with pytest.raises(core.InputError, match="share none"):
        attention_distillation(dense, TEACHER, IMAGES, AttentionSettings())
    with pytest.raises(core.InputError, match="share none"):
        hint_training(Classifier.create(MLP(3, ()), KEY, SHAPE), TEACHER, IMAGES)
    with pytest.raises(core.InputError, match="conv1, conv2, dense1, and conv9 was asked for"):
        hint_training(STUDENT, TEACHER, IMAGES, layer="conv9")
    with pytest.raises(core.InputError, match="batches of at least 3"):
        relation_distillation(STUDENT, TEACHER, IMAGES, RelationSettings(), batch_size=2)
    with pytest.raises(core.InputError, match="must agree on classes and images"):
        hint_training(Classifier.create(MLP(4, (4,)), KEY, SHAPE), TEACHER, IMAGES)
    for wrong in ({"distance": -1.0}, {"temperature": 0.0}, {"distance": 0.0, "angle": 0.0, "response": 0.0}):
        with pytest.raises(core.InputError, match="must"):
            RelationSettings(**wrong)
    with pytest.raises(core.InputError, match="attention must not be negative"):
        AttentionSettings(attention=-1.0)
