"""What the report says, shows and tolerates."""

import dataclasses
import json
import re

import numpy as np
import pytest

from dfke_jax import report
from dfke_jax.core import tracking
from dfke_jax.core.errors import InputError
from dfke_jax.display import numbers
from dfke_jax.experiments.bench.result import Published, Result
from dfke_jax.report import figures, words

PNG = b"\x89PNG\r\n\x1a\n"


def body(path):
    return " ".join(re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", path.read_text()).split())


def plain(directory, result):
    """A directory with nothing but `result.json`."""
    directory.mkdir()
    result.write(directory)
    return directory


def test_report_holds_the_numbers_and_nothing_from_elsewhere(directory):
    path = report.render(directory)
    text = body(path)
    assert path == directory / "report.html"
    for piece in (
        "93.15 ± 0.98",
        "60.10 ± 4.59",
        "97.96 ± 0.42",
        "93.06",
        "+31.66",
        "+37.22",
        "+30.27",
        "+33.05",
    ):
        assert piece in text
    for piece in (
        "reproduced within 0.5 points (0.15 below)",
        "not reproduced (1.70 below)",
        "36,000,000",
        "abc1234",
    ):
        assert piece in text
    for piece in (
        "another paper&#39;s table",
        "recalled from the paper",
        "not measured here",
        "1, 0.1",
        "0.001",
        "53 s",
    ):
        assert piece in text
    assert not re.search(r"<script|<link|<iframe|@import|url\(|(src|href)\s*=\s*[\"']?\s*(https?:)?//", text, re.I)
    assert set(re.findall(r'src="([^"]*)"', text)) == {"data:image/png;base64,"}
    assert "prefers-color-scheme" in text
    assert 'name="viewport"' in text


def test_figures_are_written_beside_the_page(directory):
    path = report.render(directory)
    names = {file.name for file in (directory / "figures").iterdir()}
    samples = {"samples_data_impressions.png", "samples_control.png"}
    assert names == {"arms.png", "class_similarity.png", "curves.png"} | samples
    for file in (directory / "figures").iterdir():
        content = file.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 5_000
    assert path.read_text().count("data:image/png;base64,") == 5
    assert report.render(directory) == path  # again, over what is there


def test_names_are_escaped(tmp_path, result):
    evil = '<script>alert("x")</script>'
    result.title, result.notes, result.config = evil, [evil], {evil: evil}
    result.arms[1] = dataclasses.replace(result.arms[1], label=evil)
    text = report.render(plain(tmp_path / "run", result)).read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


def test_missing_pieces_are_left_out(tmp_path, result):
    result.published, result.notes, result.seconds, result.environment, result.config = [], [], {}, {}, {}
    result.arms = [result.arms[1]]
    text = body(report.render(plain(tmp_path / "run", result)))
    assert "there is no published figure for this data set" in text
    for heading in ("Published figures", "Gain over", "Notes", "Time", "Environment"):
        assert f"<h2>{heading}" not in text
    assert {file.name for file in (tmp_path / "run" / "figures").iterdir()} == {"arms.png"}


def test_a_result_without_accuracy_still_renders(tmp_path, result):
    result.arms = [dataclasses.replace(arm, accuracy=[], agreement=[]) for arm in result.arms if arm.role == "teacher"]
    assert "No accuracy was recorded." in body(report.render(plain(tmp_path / "run", result)))


def test_damaged_pieces_are_named_in_the_notes(directory):
    (directory / "samples.npz").write_bytes(b"no archive")
    np.savez(directory / "similarity.npz", class_similarity=np.zeros((3, 4)))
    (directory / "metrics.jsonl").write_text('{"step": 1, "seed0/a/loss": 1.0}\n{"step": 2, "seed0/a/lo')
    text = body(report.render(directory))
    assert "samples.npz could not be read" in text
    assert "“Class similarity” could not be drawn" in text
    assert (directory / "figures" / "curves.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "not a result"),
        ("[]", "not a result"),
        ('{"recipe": 1}', "not a result"),
    ],
)
def test_damaged_result(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=message):
        report.render(tmp_path)


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="there is no result"):
        report.render(tmp_path)
    with pytest.raises(InputError, match="nor in its sub-directories"):
        report.render_all(tmp_path)
    with pytest.raises(InputError, match="there is no directory"):
        report.render_all(tmp_path / "absent")


def test_several_runs_get_an_index(tmp_path, result):
    plain(tmp_path / "one", result)
    (tmp_path / "deep").mkdir()
    result.arms[1].accuracy = [80.0, 81.0, 82.0]
    plain(tmp_path / "deep" / "two", result)
    page, results = report.render_all(tmp_path)
    text = body(page)
    assert page.name == "index.html"
    assert len(results) == 2
    assert 'href="one/report.html"' in text
    assert 'href="deep/two/report.html"' in text
    assert "93.15 ± 0.98" in text
    assert "not reproduced (12.30 below)" in text


def test_reproduced_only_within_the_rule(result):
    def found(value):
        result.published = [Published("real", "digits:1.0", value, "A", "code")]
        (comparison,) = words.comparisons(result)
        return comparison.reproduced, comparison.words

    result.arms[-1].accuracy = [97.0, 98.0]  # mean 97.5
    assert result.arms[-1].role != "method"
    assert found(97.0) == (True, "reproduced (0.50 above)")
    assert found(98.0) == (True, "reproduced within 0.5 points (0.50 below)")
    assert found(98.01) == (False, "not reproduced (0.51 below)")


def test_a_figure_that_the_control_reaches_too_is_not_put_down_to_the_method(result):
    """Means 93.15 and, of the control, 60.10 to begin with."""
    result.published = [Published("data_impressions", "digits:1.0", 90.0, "A", "code")]
    control = result.arms[2]

    def found(values):
        control.accuracy = values
        (comparison,) = words.comparisons(result)
        return comparison.reproduced, comparison.words

    assert found(control.accuracy) == (True, "exceeded (3.15 above)")
    assert found([89.0, 89.6, 89.6]) == (True, "exceeded (3.15 above)")
    assert found([90.5, 91.0, 90.6]) == (True, "exceeded (3.15 above; its control has 90.70)")
    assert found([93.5, 94.0, 93.6]) == (False, "not the method's (3.15 above, but its control has 93.70)")
    assert "exceeded" not in words.verdict(result)[0]
    result.published = [Published("data_impressions", "digits:1.0", 93.3, "A", "code")]
    assert found([93.5, 94.0, 93.6]) == (False, "not the method's (0.15 below, but its control has 93.70)")
    result.published = [Published("data_impressions", "digits:1.0", 95.0, "A", "code")]
    assert found([93.5, 94.0, 93.6]) == (False, "not reproduced (1.85 below)")


def test_verdict_counts_signs_seed_by_seed(result):
    result.arms[2].accuracy = [93.0, 95.0, 93.0]
    (sentence,) = words.verdict(result)
    assert "better on 2 of 3 seeds (+0.06, −2.78, +1.17)" in sentence
    result.arms[2].accuracy = [99.0, 99.0, 99.0]
    assert "worse on every seed" in words.verdict(result)[0]
    for arm in result.arms:
        arm.accuracy = arm.accuracy[:1]
    assert "over one seed" in words.verdict(result)[0]
    assert "on a single seed" in words.verdict(result)[0]


def test_verdict_names_the_best_of_what_needs_no_more(result):
    """Means 93.15 of the method, 60.10 of its control, 31.67 of noise."""
    method, control, noise = result.arms[1:4]
    assert "; +33.05 points over its matched control (60.10 ± 4.59 %), better on every seed" in words.verdict(result)[0]
    noise.accuracy = [93.0, 92.3, 94.1]
    (sentence,) = words.verdict(result)
    assert "; +0.02 points over Uniform noise, the best of what needs no more (93.13 ± 0.91 %)" in sentence
    assert "better on 2 of 3 seeds (+0.06, −0.08, +0.07); +33.05 over its matched control;" in sentence
    noise.accuracy = [94.0, 94.0, 94.0]
    assert (
        "; no better than Uniform noise, the best of what needs no more (94.00 ± 0.00 %): −0.85 points, "
        in (words.verdict(result)[0])
    )
    noise.accuracy = list(method.accuracy)
    assert "; no better than Uniform noise" in words.verdict(result)[0]
    control.accuracy = [95.0, 95.0, 95.0]
    assert (
        "; no better than its matched control (95.00 ± 0.00 %): −1.85 points, worse on every"
        in (words.verdict(result)[0])
    )
    for name, count in {"real_samples": 1, "teacher_rows": 36_000_001, "other_images": 5}.items():
        control.accuracy, noise.accuracy, noise.budget = [60.0] * 3, [99.0] * 3, {name: count}
        assert "Uniform noise" not in words.verdict(result)[0], f"needs more {name}"
    noise.budget = {"training_steps": 10**9, "teacher_rows": 36_000_000}
    assert "no better than Uniform noise" in words.verdict(result)[0]
    noise.factors, method.factors = {"mark": "a", "queries": 5}, {"mark": "b", "queries": 6}
    assert "Uniform noise" not in words.verdict(result)[0], "of another mark"
    noise.factors["mark"] = "b"
    assert "no better than Uniform noise" in words.verdict(result)[0]


def test_tables(result):
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report.table(result))
    shown = console.export_text()
    assert "93.15 ± 0.98" in shown
    assert "…" not in shown
    result.arms[1].label = "a | b"
    lines = report.markdown_table([result, result]).splitlines()
    assert len(lines) == 2 + 2 * len(result.arms)
    assert r"**a \| b**" in lines[3]
    assert "93.15 ± 0.98 (3)" in lines[3]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (4.25, "4.2 s"), (59.4, "59 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


def test_a_spread_has_the_minus_of_differences():
    assert numbers.spread([-1.0, -2.0]) == "−1.50 ± 0.71"
    assert numbers.spread([-1.0], 1) == "−1.0" == numbers.signed(-1.0, 1)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (35, 28, 28, 3), (300, 4, 6, 2), (7, 5, 5, 6)])
@pytest.mark.parametrize("labelled", [True, False])
def test_sample_grid_takes_any_images(shape, labelled):
    images = np.random.default_rng(0).random(shape, np.float32)
    images[0, 0, 0, 0] = np.nan
    labels = np.arange(shape[0]) % 30 if labelled else None
    figure = figures.sample_grid(images, labels, ["$a_class_with_a_long_name$"] * 3)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())  # pyright: ignore[reportAttributeAccessIssue]
    assert len(np.unique(drawn[..., :3])) > 10, "nothing but the ground"


@pytest.mark.parametrize("classes", [2, 12, 100])
def test_similarity_map_takes_any_number_of_classes(classes):
    figure = figures.similarity_map(np.eye(classes), [f"class number {i}" for i in range(classes)])
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert len(texts) == (classes**2 if classes <= 12 else 0)


def test_curves_have_a_panel_a_metric_and_a_line_a_seed(directory):
    figure = figures.curves(tracking.read(directory / "metrics.jsonl"))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(panels) == {"synthesis/loss", "student/loss", "student/accuracy"}
    assert all(len(axes.lines) == 3 for axes in panels.values())
    assert panels["synthesis/loss"].get_yscale() == "log"
    assert panels["student/accuracy"].get_yscale() == "linear"


def test_curves_of_populations_and_of_many_metrics():
    metrics = {f"stage{i}/loss/{member}": ([1, 2], [1.0, 0.5]) for i in range(30) for member in range(2)}
    figure = figures.curves(metrics)
    assert sum(axes.get_visible() for axes in figure.axes) == figures.PANELS
    assert all(len(axes.lines) == 2 for axes in figure.axes if axes.get_visible())
    figures.curves({"loss": ([1], [2.0])}).canvas.draw()


def test_arms_crop_their_axis_and_say_so(result):
    (axes,) = figures.arms(result).axes
    assert axes.get_xlim()[0] == 0
    assert "begins" not in axes.get_xlabel()
    result.arms = [arm for arm in result.arms if arm.role in ("teacher", "method", "anchor")]
    (axes,) = figures.arms(result).axes
    assert axes.get_xlim()[0] > 80
    assert f"begins at {axes.get_xlim()[0]:g}" in axes.get_xlabel()


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.sample_grid(np.zeros((3, 8, 8))),
        lambda: figures.sample_grid(np.zeros((0, 8, 8, 1))),
        lambda: figures.similarity_map(np.zeros((2, 3))),
        lambda: figures.curves({}),
        lambda: figures.arms(Result("r", "t", "d", {}, [0], [], [], {}, {})),
    ],
)
def test_figures_refuse_what_they_cannot_draw(call):
    with pytest.raises(InputError):
        call()


def test_written_and_read_again(directory, result):
    assert report.load(directory).to_json() == json.loads((directory / "result.json").read_text())
    assert report.load(directory).metrics == result.metrics
