"""What the report says, shows and tolerates."""

import base64
import csv
import dataclasses
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dfke_jax import report
from dfke_jax.core import tracking
from dfke_jax.core.errors import InputError
from dfke_jax.display import numbers
from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.result import Published, Result
from dfke_jax.experiments.bench.run import as_written
from dfke_jax.report import figures, pictures, repeating, words

PNG = b"\x89PNG\r\n\x1a\n"


def body(path):
    """The words of a page, without its figures and data."""
    text = re.sub(r"<svg.*?</svg>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text).split())


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
    whole = path.read_text()
    assert not re.search(
        r"<script|<link|<iframe|@import|url\((?!#)|(src|href)\s*=\s*[\"']?\s*(https?:)?//", whole, re.I
    )
    assert "src=" not in text
    links = set(re.findall(r'href="([^"#]*)"', whole))
    assert {link for link in links if not link.startswith("data:")} == {
        "samples.npz", "similarity.npz", "metrics.jsonl",
    }  # fmt: skip
    assert all((directory / link).exists() for link in links if not link.startswith("data:"))
    assert re.search(r'aria-label="a table" tabindex="0"', whole)
    assert "prefers-color-scheme" in text
    assert 'name="viewport"' in text


@pytest.mark.slow
def test_figures_are_written_beside_the_page_and_stand_within_it(directory):
    path = report.render(directory)
    names = {file.name for file in (directory / "figures").iterdir()}
    samples = {"samples_data_impressions.svg", "samples_control.svg"}
    assert names == {"arms.svg", "arms.csv", "class_similarity.svg", "curves.svg"} | samples
    text = path.read_text()
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 5
    for file in (directory / "figures").glob("*.svg"):
        ElementTree.parse(file)
        assert 5_000 < len(file.read_bytes()) < 150_000, file.name
    assert len(text) < 500_000
    assert all('role="img" aria-label="' in svg for svg in drawn)
    assert not any("<text" in svg for svg in drawn), "letters that depend on the reader's fonts"
    assert report.render(directory) == path  # again, over what is there
    assert path.read_text() == text, "the same bytes for the same run"


def test_names_within_figures_are_their_own(drawn):
    """Several SVG in one page share its names: each reference leads to one element, of the same figure."""
    text = (drawn / "report.html").read_text()
    names = re.findall(r' id="([^"]*)"', text)
    assert len(names) == len(set(names)) > 20
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
        assert used <= set(re.findall(r' id="([^"]*)"', svg))
        assert "dc:" not in svg
        assert "\n*{" not in svg, "a style that holds beyond the figure"


def test_the_numbers_of_a_figure_go_with_it(drawn):
    text = (drawn / "report.html").read_text()
    (link,) = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="arms.csv"', text)
    rows = list(csv.reader(io.StringIO(base64.b64decode(link).decode())))
    assert rows[0] == ["arm", "role", "seed", "accuracy %", "agreement %"]
    assert rows[4:7] == [["Data impressions", "method", str(i), *of] for i, of in
                         enumerate((["93.06", "93.6"], ["92.22", "92.9"], ["94.17", "94.5"]))]  # fmt: skip
    assert rows[1] == ["LeNet-5 teacher", "teacher", "0", "98.06", ""]
    assert (drawn / "figures" / "arms.csv").read_text() == base64.b64decode(link).decode()


@pytest.mark.slow
def test_a_figure_of_very_many_points_is_a_png(directory, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 30_000)
    text = report.render(directory).read_text()
    large = list((directory / "figures").glob("*.png"))
    assert large
    assert all(file.read_bytes().startswith(PNG) for file in large)
    assert text.count('src="data:image/png;base64,') == len(large)
    assert all(len(file.read_text()) <= 30_000 for file in (directory / "figures").glob("*.svg"))


def test_numbers_that_are_many_are_linked_and_not_within_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_EMBEDDED", 100)
    rows = [("x", "y"), *((i, i * i) for i in range(50))]
    picture = pictures.Pictures(tmp_path).draw(
        "many", "Many", "", lambda: figures.curves({"a": ([1], [2.0])}), data=rows
    )
    assert picture is not None
    assert picture.data == pictures.Data("figures/many.csv", "many.csv")
    assert (tmp_path / "figures" / "many.csv").read_text().splitlines()[-1] == "49,2401"


def test_printed_headings_stay_with_what_follows(drawn):
    text = (drawn / "report.html").read_text()
    (printed,) = re.findall(r"@media print \{(.*?)\} \}", text, re.DOTALL)
    assert re.search(r"h1, h2, figcaption, thead \{ break-after:avoid; \}", printed)
    assert re.search(r"figure, tr[^}]*break-inside:avoid", printed)


def test_the_command_that_repeats_the_run(directory, result):
    assert "The same again: <code>dfke run zskd --config config.json</code>" in body(report.render(directory))
    settings = recipe("zskd").settings("mnist", seeds=5)
    synthesis = dataclasses.replace(settings.synthesis, steps=7, scales=(1.0, 0.25))
    changed = dataclasses.replace(settings, synthesis=synthesis)
    result.dataset, result.config = "mnist", as_written(changed)
    found = repeating.command(result)
    assert found.startswith("dfke run zskd --dataset mnist --seeds 5 --synthesis.")
    assert found.count("--") == 4
    assert " --synthesis.steps 7" in found
    assert " --synthesis.scales 1.0 0.25" in found
    result.config = as_written(settings) | {"no such setting": 1}
    assert repeating.command(result) == "dfke run zskd --config config.json"
    result.recipe = "of another package"
    assert repeating.command(result) == "dfke run 'of another package' --config config.json"


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
    assert {file.name for file in (tmp_path / "run" / "figures").iterdir()} == {"arms.svg", "arms.csv"}


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
    assert (directory / "figures" / "curves.svg").exists()


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


def test_the_names_of_several_teachers_do_not_cover_each_other(result):
    result.arms.append(dataclasses.replace(result.arms[0], name="second", label="Another teacher"))
    figure = figures.arms(result)
    figure.canvas.draw()
    (axes,) = figure.axes
    first, second = (text.get_window_extent() for text in axes.texts if "eacher" in text.get_text())
    assert not first.overlaps(second)
    assert max(first.y1, second.y1) < figure.bbox.y1


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
