"""The page of kept results, against their files."""

import dataclasses
from pathlib import Path

from dfke_jax.experiments.bench.result import Published
from dfke_jax.report import words
from dfke_jax.report.tables import results_texts

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_the_pages_of_results_are_what_their_files_give():
    texts = results_texts(RESULTS)
    assert {path.name for path in RESULTS.glob("*.md")} == set(texts), (
        "a page of no experiment, or run `dfke reproduce --page`"
    )
    for name, text in texts.items():
        assert (RESULTS / name).read_text() == text, f"{name}: run `dfke reproduce --page`"


def test_the_index_has_a_line_for_every_experiment_and_every_figure_is_on_a_page():
    index = (RESULTS / "README.md").read_text()
    pages = "".join(path.read_text() for path in RESULTS.glob("*.md"))
    for path in RESULTS.glob("*.json"):
        (line,) = [line for line in index.splitlines() if f"]({path.stem}.md)" in line]
        assert line.startswith("| ")
    for figure in (RESULTS / "figures").glob("*.png"):
        assert f"](figures/{figure.name})" in pages, figure.name


def test_a_published_figure_of_another_setting_is_not_judged(result):
    figure = Published("real", "digits", 97.0, "A", "code", differs="their student is smaller")
    result.published = [figure, dataclasses.replace(figure, differs="")]
    differing, like = words.comparisons(result)
    assert (differing.reproduced, differing.words) == (False, "not judged (0.20 above): their student is smaller")
    assert (like.reproduced, like.words) == (True, "reproduced (0.20 above)")
    result.arms[-1].accuracy = [90.0]
    assert words.comparisons(result)[0].words == "not judged (7.00 below): their student is smaller"
