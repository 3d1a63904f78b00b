"""The scripts of `examples/`, with tiny budgets, and the one-file attack against the package's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_files import EXAMPLES, example

from dfke_jax import core, nn
from dfke_jax.extraction import DFMESettings, dfme
from dfke_jax.nn.mlp import MLP
from dfke_jax.synthesis.zeroth_order import unit_directions

DOCS = EXAMPLES.parent / "docs"


def test_every_example_is_a_tutorial_and_run_here():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {path.stem for path in (DOCS / "tutorials").glob("*.md")} - {"index"}
    here = Path(__file__).read_text()
    for name in names:
        assert f'example("{name}")' in here
        assert f'--8<-- "examples/{name}.py"' in (DOCS / "tutorials" / f"{name}.md").read_text()


def test_distil_without_data():
    found = example("distil_without_data").main(300, samples=200, synthesis_steps=40, student_steps=300)
    assert found["teacher"] > 90
    assert found["student"] > 50
    assert 10 <= found["control"] < found["teacher"]


def test_attack_pytorch_over_http(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    for name in ("httpx", "starlette", "uvicorn"):
        pytest.importorskip(name, reason="the serve extra is not installed")
    attack = example("attack_pytorch_over_http")
    found = attack.main(budget=1000, victim_steps=200, folder=str(tmp_path))
    assert found["victim"] > 85
    assert 0 < found["queries"] <= 1000
    assert (tmp_path / "ledger.sqlite").exists()
    assert found["agreement"] > 15, "twice what a constant answer agrees on"


@pytest.mark.slow
def test_mark_and_verify(tmp_path):
    found = example("mark_and_verify").main(steps=200, triggers=30, independents=19, alpha=0.05, folder=str(tmp_path))
    assert found["marked"].accepted
    assert found["marked"].marked
    assert found["fine-tuned copy"].marked
    assert not found["innocent"].marked
    assert found["innocent"].null.models == 19
    assert {path.name for path in tmp_path.iterdir()} == {"secret.json", "public.json"}


@pytest.mark.slow
def test_dfme_in_one_file():
    page = example("dfme_in_one_file")
    found = page.main(page.Config(queries=6_000, batch=16, width=4), victim_steps=200)
    assert found["victim"] > 85
    assert found["clone"] > 20


def test_dfme_in_one_file_imports_no_attack():
    text = (EXAMPLES / "dfme_in_one_file.py").read_text()
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert [line for line in imports if "dfke_jax" in line] == ["from dfke_jax import data, nn"]


@pytest.mark.slow
def test_an_iteration_of_one_file_is_the_package_s():
    """Equal weights and equal draws: the same clone, generator, statistics and metrics after one iteration."""
    shape, classes = (8, 8, 1), 3
    settings = DFMESettings(
        batch_size=6, clone_batches=2, latent=5, width=2, schedule="constant", clone_rate=0.05, generator_rate=1e-3,
        epsilon=0.05,
    )  # fmt: skip
    module = MLP(classes, (12,))
    victim = nn.Classifier.create(module, jax.random.key(0), shape)
    answers = jax.tree_util.Partial(lambda victim, rows: jax.nn.softmax(4 * victim(rows)), victim)
    attack = dfme(nn.Classifier.create(module, jax.random.key(1), shape), settings)
    key = jax.random.key(2)
    first = jax.jit(attack.init)(jax.random.key(3))
    expected, reported = jax.jit(core.against(attack, answers).step)(key, first)

    page = example("dfme_in_one_file")
    config = page.Config(
        batch=6, clone_batches=2, latent=5, width=2, epsilon=0.05, clone_rate=0.05, generator_rate=1e-3
    )
    assert config.queries_per_iteration == settings.rows_per_step
    init, draw, iteration = page.make_attack(config, shape, module)
    state = jax.jit(init)(jax.random.key(4))
    state = state._replace(
        clone=first.clone.variables["params"],
        generator=first.generator.variables["params"],
        statistics=first.generator.variables["batch_stats"],
    )
    drawn = attack.init.args[0].draws(key)
    directions = unit_directions(drawn.directions, (6, *shape), settings.differences)[0]
    given = page.Drawn(drawn.clone_z, drawn.generator_z, directions)
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, draw(key))
    found, metrics = jax.jit(lambda state, given: iteration(answers, state, given))(state, given)

    for of_page, of_package, before in (
        (found.clone, expected.clone.variables["params"], state.clone),
        (found.generator, expected.generator.variables["params"], state.generator),
        (found.statistics, expected.generator.variables["batch_stats"], state.statistics),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), of_page, of_package)
        moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), of_package, before)))
        assert moved > 5e-4, "nothing happened"
    np.testing.assert_allclose(metrics["loss"], reported["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["disagreement"], reported["disagreement"], rtol=1e-5)


def test_distances_to_a_boundary_that_is_known():
    """One unit without a bend: the classes divide where x + y = 0."""
    of = example("boundary_walk")
    line = of.network((2,), 0)
    dense, head = sorted(line.variables["params"], key=lambda name: "dense" not in name)
    params = {
        dense: {"kernel": jnp.asarray([[1.0, -1.0]] * 2), "bias": jnp.zeros(2)},
        head: {"kernel": jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), "bias": jnp.zeros(2)},
    }
    found = of.boundary(line.replace(variables={"params": params}))
    np.testing.assert_allclose(found.sum(1), 0, atol=0.026)
    assert len(found) > 100
    away = of.distance(np.array([[0.5, 0.5], [-0.3, 0.3], [0.0, -0.4]]), found)
    np.testing.assert_allclose(away, (0.5 * 2**0.5 + 0.0 + 0.4 / 2**0.5) / 3, atol=0.03)


@pytest.mark.slow
def test_boundary_walk(tmp_path):
    """Belief matching goes to the boundary, distances of logits first away from it; the control stays."""
    out = tmp_path / "walk.png"
    found = example("boundary_walk").main(steps=40, teacher_steps=1000, seeds=1, out=str(out))
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (1, 3))
    zskt, dfad, still = (found[name][0] for name in ("ZSKT", "DFAD", "never learns"))
    assert zskt[-1] < 0.7 * zskt[0]
    assert dfad.max() > 1.1 * dfad[0]
    np.testing.assert_array_equal(still, still[0])
    assert out.stat().st_size > 10_000
