"""Figures of hand-written pages, against the kept results."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dfke_jax import cli
from dfke_jax.report import pages

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_figure_of_every_page_is_what_its_file_gives():
    faults = pages.check(DOCS)
    assert not faults, "run `dfke reproduce --page`, or name the source in docs/sources:\n" + "\n".join(
        map(str, faults)
    )


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_no_paragraph_of_a_guide_holds_more_than_three_figures(path):
    assert pages.crowded(path) == [], "a list, a table, or docs/notes"


@pytest.mark.slow
def test_pages_follow_other_results_and_come_back(tmp_path):
    written = [path for path in DOCS.rglob("*.md") if path.parent != DOCS / "results"]
    for path in [*written, *DOCS.rglob("sources/**/*.toml"), *DOCS.glob("results/*.json")]:
        copy = tmp_path / path.relative_to(DOCS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    random = np.random.default_rng(0)
    for path in (tmp_path / "results").glob("*.json"):
        content = json.loads(path.read_text())
        for arm in content["arms"]:
            for values in (arm["accuracy"], arm["agreement"], *arm["metrics"].values()):
                values[:] = np.multiply(values, random.uniform(0.5, 1.5, len(values))).tolist()
        path.write_text(json.dumps(content))
    assert len(pages.check(tmp_path)) > 500
    pages.correct(tmp_path)
    assert pages.check(tmp_path) == []
    for path in DOCS.glob("results/*.json"):
        (tmp_path / "results" / path.name).write_text(path.read_text())
    pages._kept.cache_clear()
    pages.correct(tmp_path)
    for path in written:
        assert (tmp_path / path.relative_to(DOCS)).read_text() == path.read_text()


@pytest.fixture
def docs(tmp_path, result):
    (tmp_path / "results").mkdir()
    (tmp_path / "sources").mkdir()
    result.write(tmp_path / "results").rename(tmp_path / "results" / "kept.json")

    def write(page, sources):
        (tmp_path / "page.md").write_text(page)
        (tmp_path / "sources" / "page.toml").write_text(sources)
        return tmp_path

    return write


SENTENCE = """
[[measured]]
files = { k = "kept" }
text = "impressions have {s(k.data_impressions)} and gain {gain(k.data_impressions - k.control, 1)} points ({gains(k.data_impressions - k.control, 1)}),"
"""
RIGHT = "Data impressions have 93.15 ± 0.98 and\ngain +33.1 points (+31.7, +37.2, +30.3), which is much.\n"


def test_a_figure_is_held_against_its_file_and_corrected(docs):
    assert pages.check(docs(RIGHT, SENTENCE)) == []
    wrong = RIGHT.replace("93.15", "93.51").replace("+37.2", "+73.2")
    directory = docs("An opening.\n\n" + wrong, SENTENCE)
    assert [(f.line, f.says, f.right) for f in pages.check(directory)] == [
        (3, "93.51 ± 0.98", "93.15 ± 0.98"),
        (4, "+31.7, +73.2, +30.3", "+31.7, +37.2, +30.3"),
    ]
    assert pages.correct(directory) == [directory / "page.md"]
    assert (directory / "page.md").read_text() == "An opening.\n\n" + RIGHT
    assert pages.correct(directory) == []


def test_a_figure_is_replaced_as_a_whole(docs):
    template = "text = \"It reached {v(k.data_impressions[0])}, {n(k.data_impressions.budget['teacher_rows'])} and {v(k.control[0], 1)}.\""
    sources = SENTENCE.split("text")[0] + template
    directory = docs("It reached 1,234.56, 9,000,000 and 97.53. And more.\n", sources)
    pages.correct(directory)
    assert (directory / "page.md").read_text() == "It reached 93.06, 36,000,000 and 61.4. And more.\n"


def test_the_command_writes_the_page_of_results_and_corrects_the_others(docs, capsys):
    directory = docs(RIGHT.replace("93.15", "93.51"), SENTENCE)
    assert cli.main(["reproduce", "--page", "--out", str(directory / "results")]) == 0
    assert "figures corrected; see whether its words still hold" in capsys.readouterr().out
    assert (directory / "page.md").read_text() == RIGHT
    assert "93.15 ± 0.98 (3)" in (directory / "results" / "kept.md").read_text()
    assert cli.main(["reproduce", "kept", "--page"]) == 1


@pytest.mark.parametrize(
    "figure",
    ["97.5", "it is 0.045", "97 %", "97%", "97 ± 2", "p = 3e-8", "5·10⁻¹⁶", ".30", "1,234.5", "| a | 17 |"],
)
def test_a_figure_without_a_source_is_found(docs, figure):
    (fault, *others) = pages.check(docs(RIGHT + f"\n{figure}\n", SENTENCE))
    assert fault.right is None
    assert "has no source" in str(fault)
    assert len(others) == ("±" in figure)  # of mean and spread each
    explained = SENTENCE + f'\n[[other]]\nwhy = "published"\ntext = "{figure}"\n'
    assert pages.check(docs(RIGHT + f"\n{figure}\n", explained)) == []


def test_pages_in_folders_have_sources_in_folders_and_none_escapes(docs):
    directory = docs(RIGHT, SENTENCE)
    (directory / "notes").mkdir()
    (directory / "notes" / "trial.md").write_text("It had 93.51 ± 0.98.\n")
    assert [str(fault) for fault in pages.check(directory)] == [
        "notes/trial.md:1: '93.51' has no source",
        "notes/trial.md:1: '0.98' has no source",
    ]
    (directory / "sources" / "notes").mkdir()
    source = SENTENCE.split("text")[0] + 'text = "It had {s(k.data_impressions)}."\n'
    (directory / "sources" / "notes" / "trial.toml").write_text(source)
    (fault,) = pages.check(directory)
    assert (fault.page, fault.right) == ("notes/trial.md", "93.15 ± 0.98")
    assert pages.correct(directory) == [directory / "notes" / "trial.md"]
    assert pages.check(directory) == []
    (directory / "results" / "kept.md").write_text("made as a whole: 1.23\n")
    (directory / "sources" / "gone.toml").write_text("")
    (fault,) = pages.check(directory)
    assert str(fault) == "sources of gone.md: there is no such page"


def test_paragraphs_with_too_many_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\nThree: 1.5, 2.5 ± 0.1\nand 3.5.\n\nFour: 1.5, 2.5,\n3.5 and 40 %.\n\n- 1.5 and 2.5,\n  3.5\n"
        "- 4.5\n  and 5.5, 6.5, 7.5 ± 1.0\n\n| 1.5 | 2.5 | 3.5 | 4.5 |\n\n```\n1.5 2.5 3.5 4.5\n```\n"
    )
    assert pages.crowded(page) == [(6, 4), (11, 4)]
    assert pages.crowded(page, most=4) == []


@pytest.mark.parametrize(
    "text",
    ["`rate=0.5`", "```\nx = 0.5\n```", "[a link](b-0.5.md)", "seed 3 of 5", "LeNet-5", "| ResNet-18, 3 epochs |"],
)
def test_code_links_and_whole_numbers_in_sentences_are_no_figures(docs, text):
    assert pages.check(docs(RIGHT + f"\n{text}\n", SENTENCE)) == []


def test_rows_of_a_table_are_one_entry_and_others_a_counted_block(docs):
    page = "# Table\n| a | b |\n|---|--:|\n| ours | 93.15 |\n| noise | 31.67 |\n\n## Trials\n| 1 | 0.5 |\n\n## End\n"
    sources = """
[[measured]]
files = { k = "kept" }
after = "# Table"
each = [["ours", "data_impressions"], ["noise", "uniform"]]
text = "| $1 | {mean(k.$2)} |"

[[other]]
why = "trials"
section = "## Trials"
figures = 2
"""
    assert pages.check(docs(page, sources)) == []
    (fault,) = pages.check(docs(page.replace("| 1 | 0.5 |", "| 1 | 0.5 |\n| 2 | 0.7 |"), sources))
    assert (fault.says, fault.right) == ("2 figures in ## Trials", "4")
    (fault,) = pages.check(docs(page.replace("31.67", "31.76"), sources))
    assert (fault.line, fault.says, fault.right) == (5, "31.76", "31.67")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("impressions have", "impressions had", "does not say .* any more"),
        ('"kept"', '"absent"', "there is no result file"),
        ("s(k.data_impressions)", "s(k.impressions)", "no arm 'impressions'"),
        ("s(k.data_impressions)", "s(k.data_impressions.success)", "no metric 'success'; it has entropy"),
    ],
)
def test_sources_that_lead_nowhere_are_named(docs, old, new, message):
    directory = docs(RIGHT, SENTENCE.replace(old, new))
    fault, *figures = pages.check(directory)
    assert re.fullmatch(f"sources of page.md: .*{message}.*", str(fault))
    assert {one.right for one in figures} == {None}
    assert pages.correct(directory) == []
    (fault, *_) = pages.check(docs(RIGHT, SENTENCE + '\n[[other]]\nwhy = "gone"\ntext = "98.77, recalled"\n'))
    assert "does not say '98.77, recalled' any more" in str(fault)


def test_ways_of_writing_a_number():
    writes = pages.FORMATS
    values = pages.Seeds([1.0, 2.5])
    assert writes["s"](values, 1) == "1.8 ± 1.1"  # 1.75, 1.06
    assert writes["gain"](values - 3, 1) == "−1.2"
    assert writes["each"](values + values, 1) == "2.0, 5.0"
    assert (writes["low"](values), writes["high"](values, 1)) == ("1.00", "2.5")
    assert (writes["n"](1234.4), writes["counts"]([1e4, 3])) == ("1,234", "10,000, 3")
    assert [writes["chance"](p) for p in (3.2e-8, 0.0081, 0.3)] == ["3e-8", ".008", ".30"]
    assert writes["ten"](4.9e-16) == "5·10⁻¹⁶"
    assert writes["share"]([50.0, 20.0, 80.0], 30) == "15, 6 and 24"
    assert pages._NAMES["tail"](9, 10, 0.5) == pytest.approx(11 / 1024)
