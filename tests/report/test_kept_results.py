"""The page of kept results, against their files."""

import dataclasses
from pathlib import Path

from dfke_jax.experiments.bench.result import Published
from dfke_jax.report import words
from dfke_jax.report.tables import results_text

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_the_page_of_results_is_what_their_files_give():
    assert (RESULTS / "README.md").read_text() == results_text(RESULTS), "run `dfke reproduce --page`"


def test_a_published_figure_of_another_setting_is_not_judged(result):
    figure = Published("real", "digits", 97.0, "A", "code", differs="their student is smaller")
    result.published = [figure, dataclasses.replace(figure, differs="")]
    differing, like = words.comparisons(result)
    assert (differing.reproduced, differing.words) == (False, "not judged (0.20 above): their student is smaller")
    assert (like.reproduced, like.words) == (True, "reproduced (0.20 above)")
    result.arms[-1].accuracy = [90.0]
    assert words.comparisons(result)[0].words == "not judged (7.00 below): their student is smaller"
