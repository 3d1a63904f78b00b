"""What the README promises."""

import re
from pathlib import Path

import pytest

from dfke_jax.experiments import recipes
from dfke_jax.experiments.documented import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_methods_table_names_every_recipe():
    assert set(re.findall(r"^\| `([a-z-]+)` \|", README, re.MULTILINE)) == set(recipes())


def test_commands_name_recipes_that_exist():
    named = set(re.findall(r"dfke run ([a-z][a-z-]+)", README))
    assert named
    assert named <= set(recipes())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_documented_results_come_from_documented_experiments():
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    assert files
    for path in files:
        assert path.stem in EXPERIMENTS, path


@pytest.mark.slow
def test_library_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "README.md", "exec"), {})
    assert "(500, 8, 8, 1)" in capsys.readouterr().out
