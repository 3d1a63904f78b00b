"""The progress bar fits its terminal and never loses its times."""

import itertools
import re
import types

import pytest

from dfke_jax.core import progress
from dfke_jax.core.progress import columns, progress_bar

TIMES = re.compile(r"(\d+)/(\d+) .*?(\d:\d\d:\d\d) (\d:\d\d:\d\d|-:--:--)")
TITLE = "seed 2/3, stage 14/26: data_impressions_control/student"


@pytest.mark.parametrize("width", range(45, 220, 7))
@pytest.mark.parametrize("title", [5, 30, 90])
@pytest.mark.parametrize("steps", [9, 100_000])
def test_the_parts_fit_the_width(width, title, steps):
    found = columns(width, title, steps)
    counts = 2 * len(str(steps)) + 1
    parts = [found.title, counts, 7, 7, *(part for part in found[1:] if part)]
    assert sum(parts) + len(parts) - 1 <= width
    assert found.title >= 1
    if width >= 200:
        assert found.title >= title
        assert min(found) > 0


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("title", ["student", TITLE])
def test_counts_and_times_are_whole(width, title, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    clock = types.SimpleNamespace(perf_counter=itertools.count(1).__next__)
    monkeypatch.setattr(progress, "time", clock)  # a second a call
    with progress_bar(title, 12_000, 0, 512, "images") as advance:
        advance(90, {"loss": 0.123456789, "accuracy": 0.5})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    (line,) = lines
    assert len(line) <= width
    found = TIMES.search(line)
    assert found is not None, line
    assert found.group(1, 2) == ("90", "12000")
    assert line.startswith(title[:15])
    assert ("46,080 images/s" in line) == (width >= 160 or (width >= 100 and title == "student"))
    if width >= 80:
        assert line.startswith(title[:23]), "which stage of how many"


def test_brackets_in_a_title_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar("a [bold] title", 3) as advance:
        advance(3, {})
    assert "a [bold] title" in capsys.readouterr().out


@pytest.mark.parametrize("title", [None, False])
def test_without_a_title_nothing_is_shown(title, capsys):
    with progress_bar(title, 3) as advance:
        advance(3, {})
    assert capsys.readouterr() == ("", "")


def test_true_stands_for_the_unit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar(True, 3, unit="images") as advance:
        advance(3, {})
    assert capsys.readouterr().out.strip().startswith("images ")
