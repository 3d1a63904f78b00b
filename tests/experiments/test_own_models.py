"""Recipes with a teacher, or a victim, of the user's own."""

import dataclasses

import numpy as np
import pytest

from dfke_jax import core, data, nn
from dfke_jax.commands import running
from dfke_jax.core.errors import InputError
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.bench.own import Victim, mark_of
from dfke_jax.experiments.bench.settings import network, own_model
from dfke_jax.extraction import CloneTraining, PoolAttackSettings
from dfke_jax.nn.supervised import cross_entropy_training

FUNCTION = """
import numpy as np

def scores(rows):
    flat = np.asarray(rows).reshape(len(rows), -1)
    return np.stack([flat[:, k : k + 4].sum(1) for k in range(10)], 1) - 1.0
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network that was trained on the digits and saved."""
    import jax

    digits = data.load("digits")
    classifier = network("mlp_small", 10, digits.shape)
    training = cross_entropy_training(classifier, *digits.train.on_device(), steps=60, batch_size=32)
    trained = nn.trained(classifier, core.run(training, jax.random.key(5), 60).state)
    trained.save(path := tmp_path_factory.mktemp("own") / "mine")
    return str(path), trained


def test_what_is_a_model_and_what_a_name():
    assert all(map(own_model, ("runs/x", "net.pt2", "net.py:Net", "http://host", "./mine", "C:\\\\mine")))
    assert not any(own_model(name) for name in nn.names())


@pytest.mark.slow
def test_a_network_of_ones_own_is_distilled(saved, tmp_path):
    where, trained = saved
    small = {"student": "mlp_small", "seeds": 1, "samples": 20, "synthesis_batch": 20, "baselines": False}
    budgets = {"teacher_steps": 5, "distillation_steps": 5, "distillation_batch": 8, "teacher": where}
    settings = recipe("data-impressions").settings("digits", **small, **budgets)
    settings = dataclasses.replace(settings, synthesis=dataclasses.replace(settings.synthesis, steps=2))
    found = run_recipe(recipe("data-impressions"), settings, out=tmp_path / "run", progress=False, devices=1)
    test = data.load("digits").test
    own = 100 * float((trained.predict(test.images).argmax(1) == test.labels).mean())
    arms = {arm.name: arm for arm in found.arms}
    assert arms["teacher"].accuracy == [pytest.approx(own, abs=1e-4)]
    assert any("The teacher is a model of one's own" in note for note in found.notes)
    assert set(arms) >= {"data_impressions", "data_impressions_control", "real_data"}


def small_knockoff(where, **more):
    attack = PoolAttackSettings(rows_per_step=30, clone=CloneTraining(steps=10, batch_size=16))
    return recipe("knockoff").settings(
        "digits", teacher=where, student="mlp_small", seeds=1, budgets=(60,), teacher_steps=5, attack=attack, **more
    )


@pytest.mark.slow
def test_a_function_of_ones_own_is_stolen_through_a_ledger(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTION)
    settings = small_knockoff(f"{file}:scores")
    found = run_recipe(recipe("knockoff"), settings, out=tmp_path / "run", progress=False, devices=1)
    arms = {arm.name: arm for arm in found.arms}
    assert set(arms) == {"teacher", "knockoff_60", "knockoff_60_control"}
    assert arms["knockoff_60"].budget["victim_rows"] == 60
    assert (tmp_path / "run/ledgers/seed0/knockoff_60.sqlite").is_file()
    again = run_recipe(recipe("knockoff"), settings, out=tmp_path / "run", progress=False, devices=1, resume=True)
    assert again.metrics == found.metrics


@pytest.mark.slow
def test_an_endpoint_is_asked_within_its_budget_alone(saved, tmp_path):
    pytest.importorskip("starlette")
    from dfke_jax.oracle import Reveal, background, create_app
    from dfke_jax.oracle.answering import answering

    trained = saved[1]
    app = create_app(
        answering(trained, Reveal("label")),
        input_shape=(8, 8, 1),
        reveal=Reveal("label"),
        num_classes=10,
        box=(0.0, 1.0),
    )
    with background(app) as url:
        settings = small_knockoff(url, control=False)
        found = run_recipe(recipe("knockoff"), settings, out=tmp_path / "run", progress=False, devices=1)
    assert sum(app.state.service.accounts.charged.values()) == 60
    arms = {arm.name: arm for arm in found.arms}
    assert arms["teacher"].accuracy == []
    assert len(arms["knockoff_60"].accuracy) == 1
    assert arms["knockoff_60"].agreement == []
    assert any("were not measured" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ewe", {}, "this recipe trains all of its networks itself"),
        ("dafl", {}, "distillation needs a network, and"),
        ("knockoff", {"dataset": "synthetic", "pool_dataset": "digits"}, "num_classes|takes rows|input_shape"),
    ],
)
def test_what_a_recipe_cannot_take_is_said(tmp_path, name, change, message):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTION)
    settings = recipe(name).settings(
        "digits", teacher=f"{file}:scores", **({"declare": ("shape=8,8,1",)} if change else {})
    )
    settings = dataclasses.replace(settings, **change)
    with pytest.raises(InputError, match=message):
        run_recipe(recipe(name), settings, out=tmp_path / "run", progress=False, devices=1)
    assert not (tmp_path / "run" / "result.json").exists()


def test_declarations_belong_to_a_model():
    with pytest.raises(InputError, match="lenet5 is a network's name"):
        recipe("dafl").settings("digits", declare=("mean=0.5",))
    with pytest.raises(ValueError, match="unknown network"):
        recipe("dafl").settings("digits", teacher="nothing")


def test_files_are_marked_by_their_content(tmp_path):
    (tmp_path / "a.py").write_text(FUNCTION)
    first = mark_of(f"{tmp_path / 'a.py'}:scores")
    assert first == mark_of(f"{tmp_path / 'a.py'}:scores")
    (tmp_path / "a.py").write_text(FUNCTION + "\n")
    assert first != mark_of(f"{tmp_path / 'a.py'}:scores")


def test_weights_that_are_declared_or_named_in_a_file_are_marked_too(tmp_path):
    weights, toml = tmp_path / "w.pt", tmp_path / "m.toml"
    toml.write_text('model = "a.py:scores"\nweights = "w.pt"\nclasses = 3\n')
    (tmp_path / "a.py").write_text(FUNCTION)
    marks = set()
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        marks |= {mark_of("a.py:scores", [f"weights={weights}", "mean="]), mark_of(str(toml))}
    (tmp_path / "a.py").write_text(FUNCTION + "\n")
    assert len(marks | {mark_of(str(toml))}) == 5


def test_scores_of_every_kind_of_answer():
    class Opened:
        num_classes, input_shape, box, victim = 3, (2,), (0.0, 2.0), object()

        def __init__(self, gives, answers):
            self.gives, self.answers = gives, answers

        def __call__(self, rows):
            assert rows.max() <= 2
            return self.answers[: len(rows)]

    rows = np.full((2, 2), 255, np.uint8)
    shares = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], np.float32)
    np.testing.assert_allclose(np.exp(Victim(Opened("probabilities", shares)).predict(rows)), shares, atol=1e-30)
    np.testing.assert_array_equal(Victim(Opened("label", np.array([2, 0]))).predict(rows), np.eye(3)[[2, 0]])
    np.testing.assert_array_equal(Victim(Opened("logits", shares)).predict(rows), shares)


def test_an_attackers_words_are_options():
    options = running._parse_run(recipe("dfme"), ["--victim", "http://host:1", "--budget", "20000"])
    assert (options.settings.teacher, options.settings.budgets) == ("http://host:1", (20_000,))
