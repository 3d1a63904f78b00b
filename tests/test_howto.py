"""The examples of `docs/howto`: each page shows its file and its row, and what the files say is so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import victim_kinds
from example_files import EXAMPLES, example
from jax.tree_util import Partial
from small_runs import complete, tiny

from dfke_jax import core
from dfke_jax.core import InputError
from dfke_jax.experiments import recipe, recipes, register
from dfke_jax.experiments.bench import registry
from dfke_jax.models import OPENERS, open_model
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Ledger, Reveal, check_spent

ROOT = EXAMPLES.parent
SHAPE = (6, 6, 1)
CHANGES = {
    "random-shapes": {"samples": 40},
}
PAGES = {
    "method": ("mean_impressions", "tests/test_contract.py"),
    "attack": ("unsure_queries", "tests/test_contract.py"),
    "mark": ("noise_labels", "tests/watermarking/test_marks.py"),
    "recipe": ("random_shapes", "tests/test_howto.py"),
    "own_model_white_box": ("own_model_white_box", "dfke_jax/distillation/needs.py"),
    "opener": ("centroids_opener", "tests/helpers/victim_kinds.py"),
}


def network(seed):
    return Classifier.create(MLP(3, (16,)), jax.random.key(seed), SHAPE)


def test_every_example_has_a_page():
    assert {path.stem for path in (EXAMPLES / "howto").glob("*.py")} == {file for file, _ in PAGES.values()}
    assert {path.stem for path in (ROOT / "docs/howto").glob("*.md")} == {"index", *PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_its_file_and_the_row_of_its_table(name):
    file, table = PAGES[name]
    page = (ROOT / f"docs/howto/{name}.md").read_text()
    assert f'--8<-- "examples/howto/{file}.py"' in page
    assert f"`{table}`" in page
    rows = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert rows
    for row in rows:
        assert row in (ROOT / table).read_text()
    assert len((EXAMPLES / f"howto/{file}.py").read_text().splitlines()) < 90


def test_mean_impressions_are_as_bright_as_asked_and_of_their_class():
    of = example("howto/mean_impressions")
    settings = of.MeanSettings(steps=150, learning_rate=0.05, start="uniform", brightness=0.3, weight=1000.0)
    made, start = (
        core.run(of.mean_impressions(network(0), settings, 12, 12, control=control), jax.random.key(1), 1).state
        for control in (False, True)
    )
    np.testing.assert_allclose(np.asarray(made.images).mean((1, 2, 3)), 0.3, atol=0.02)
    assert abs(float(start.images.mean()) - 0.5) < 0.05
    np.testing.assert_array_equal(made.labels, np.arange(12) % 3)
    np.testing.assert_array_equal(network(0).predict(np.asarray(made.images)).argmax(1), made.labels)
    with pytest.raises(InputError, match="brightness must lie"):
        of.MeanSettings(brightness=1.1)


def test_unsure_queries_ask_what_the_clone_is_least_sure_of_and_cost_what_they_say():
    of = example("howto/unsure_queries")
    settings, key = of.UnsureSettings(queries_per_step=4, choice=3, updates=2), jax.random.key(2)
    pool = jax.random.uniform(key, (12, *SHAPE))  # every image is drawn, 3·4 of 12
    attack = of.unsure_queries(network(0), pool, Reveal(), settings)
    state = attack.init(key)
    _, asked = attack.ask(key, state)
    logits = np.asarray(network(0).module.apply(state.variables, pool), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    least_sure = np.argsort((chances * np.log(chances)).sum(1))[:4]
    np.testing.assert_array_equal(asked, pool[least_sure])
    victim = Partial(lambda victim, rows: jax.nn.softmax(victim(rows)), network(1))
    with Ledger(budget=settings.queries(3)) as ledger:
        for step in range(3):
            state, asked = attack.ask(jax.random.fold_in(key, step), state)
            ledger.reserve(len(asked))
            state, metrics = attack.tell(jax.random.fold_in(key, step), state, asked, victim(asked))
            ledger.charge(len(asked))
        check_spent(ledger, settings.queries(3))
    assert jnp.isfinite(metrics["loss"])
    with pytest.raises(InputError, match="as many images"):
        of.unsure_queries(network(0), pool[:11], Reveal(), settings)
    with pytest.raises(InputError, match="at least 1"):
        of.UnsureSettings(choice=0)


def test_a_model_of_ones_own_is_inverted():
    of = example("howto/own_model_white_box")
    teacher = of.white_box(jax.random.key(0))
    assert teacher.missing == ()
    made = of.images_of(teacher, 2)
    assert made.shape == (12, *of.SHAPE)
    first, second = (float(np.abs(made - of.images_of(teacher, steps)).max()) for steps in (2, 1))
    assert first == 0 < second


@pytest.fixture
def random_shapes(monkeypatch, tmp_path):
    """The recipe, registered for one test."""
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    known = recipes()
    monkeypatch.setattr(registry, "_recipes", dict(known))
    module = example("howto/random_shapes")  # registers it, where it was not loaded before
    if "random-shapes" not in recipes():
        register(module.RECIPE)
    assert set(recipes()) - set(known) == {"random-shapes"}
    return recipe("random-shapes")


@pytest.mark.slow
def test_a_recipe_of_ones_own_runs_beside_the_others(random_shapes, tmp_path):
    """Registered from outside the package, and held to what every recipe's result is held to."""
    assert random_shapes.settings("digits").samples == 1000
    found = complete("random-shapes", tiny("random-shapes", CHANGES["random-shapes"]), tmp_path, pictures=False)
    assert [arm.name for arm in found.arms] == ["teacher", "scratch", "random_shapes", "random_shapes_control"]
    with pytest.raises(InputError, match="samples must be at least 1"):
        random_shapes.settings("digits", samples=0)


def test_shuffled_images_have_the_same_pixels(random_shapes):
    images = jax.random.uniform(jax.random.key(3), (5, 4, 4, 3))
    found = example("howto/random_shapes").shuffled(jax.random.key(4), images)
    rows = lambda values: sorted(map(tuple, np.asarray(values).reshape(16, 3)))
    assert all(rows(one) == rows(other) for one, other in zip(found, images, strict=True))
    assert not np.array_equal(found, images)


def test_centroids_are_opened_once_their_line_stands_in_the_table(tmp_path, monkeypatch):
    of = example("howto/centroids_opener")
    made = victim_kinds.centroids(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="no model of a known kind"):
        open_model(made.where)
    OPENERS.insert(0, of.CENTROIDS)
    try:
        model = open_model(made.where)
        for declared, message in (
            ({"num_classes": 9}, "has 3 classes, and not 9"),
            ({"layout": "NCHW"}, "has no layout"),
        ):
            with pytest.raises(InputError, match=message):
                open_model(made.where, **declared)
        np.savez(tmp_path / "x.centroids.npz", other=1)
        with pytest.raises(InputError, match="holds no centroids"):
            open_model(tmp_path / "x.centroids.npz")
    finally:
        OPENERS.remove(of.CENTROIDS)
    assert (model.kind, model.gives) == ("nearest centroids", "logits")
    assert (model.num_classes, model.input_shape) == (victim_kinds.CLASSES, victim_kinds.SHAPE)
    np.testing.assert_allclose(model(victim_kinds.ROWS), made.expected, rtol=1e-5, atol=1e-5)
