"""What the README and the other pages at the root promise."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from dfke_jax._version import __version__
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


def test_what_the_first_command_is_said_to_do_is_what_it_did():
    (command,) = re.findall(r"pip install -e \. && dfke run ([a-z-]+)\n", README)
    kept = json.loads((ROOT / "docs" / "results" / f"{command}-digits.json").read_text())
    arms = {arm["name"]: arm for arm in kept["arms"]}
    assert len(kept["seeds"]) == 3
    assert "from 65 rows, to the last bit of float32" in README
    assert arms["softmax"]["budget"] == {"victim_rows": 65}
    assert set(arms["softmax"]["agreement"] + arms["softmax"]["metrics"]["same_bits"]) == {100.0}
    assert "from some 1,500" in README
    rows = [round(dollars / kept["config"]["price"] * 1000) for dollars in arms["network"]["metrics"]["dollars"]]
    assert all(1400 <= count <= 1600 for count in rows), rows
    assert set(arms["network"]["agreement"]) == {100.0}
    for name in ("softmax", "network"):
        assert min(arms[name]["agreement"]) > max(arms[f"{name}_control"]["agreement"])
    assert f"figures/{command}-digits.png" in README


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


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "abstract", "authors"} <= set(citation)
    assert citation["version"] == __version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert all("doi" not in key for key in citation)


def test_contributing_names_every_check_and_every_marker():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    for marker in markers:
        assert f"`pytest -m {marker.split(':')[0]}`" in text
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if line.startswith(("ruff", "pyright", "lint-imports", "mkdocs")):
            assert line.split(" --quiet")[0] in text, line
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / target).exists(), target
