"""The tables of the page of benchmarks, against the files that they are made from."""

import json
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = (BENCHMARKS / "README.md").read_text()


def records(name):
    """(row, contender) -> its records, the newest last."""
    found = {}
    for line in (BENCHMARKS / "results" / f"{name}.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault((record["name"], record["contender"]), []).append(record)
    return found


def rows(heading):
    """The cells of the table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| .*\|$", section, re.M)][
        1:
    ]


def like(shown, value):
    """A value with as many decimals as are shown."""
    return f"{value:,.{len(shown.partition('.')[2])}f}"


def ratio(shown, of):
    middle, *ends = re.findall(r"[\d.]+", shown)
    return [like(middle, of["median"])] + [like(end, of[q]) for end, q in zip(ends, ("p10", "p90"), strict=False)]


def numbers(shown):
    return re.findall(r"[\d.]+", shown)


CPU = rows("Measured on two CPU cores")


@pytest.mark.parametrize("cells", CPU, ids=[cells[0] for cells in CPU])
def test_rows_on_cpu(cells):
    label, ours, plain, peer, unit, over_peer, over_plain, older = cells
    name, kept = label.strip("`"), records("cpu")
    own, theirs = kept[name, "ours"], kept[name, "pytorch"]
    assert unit == own[-1]["unit"]
    assert ours == like(ours, own[-1]["rate"]["median"])
    assert peer == like(peer, theirs[-1]["rate"]["median"])
    assert numbers(over_peer) == ratio(over_peer, own[-1]["ratio_to"]["pytorch"])
    contender = next((one for one in ("lax_scan", "lax_vmap") if (name, one) in kept), None)
    if contender is None:
        assert (plain, over_plain) == ("–", "–")
    else:
        assert plain == like(plain, kept[name, contender][-1]["rate"]["median"])
        assert numbers(over_plain) == ratio(over_plain, own[-1]["ratio_to"][contender])
    earlier = {like(older, record["ratio_to"]["pytorch"]["median"]) for record in own[:-1]}
    assert older in earlier or older == "–"


GPU = rows("Measured on an NVIDIA H200")


@pytest.mark.parametrize("cells", GPU, ids=[cells[0] for cells in GPU])
def test_rows_on_gpu(cells):
    label, ours, peer, unit, over_peer = cells
    kept = records("h200")
    name = re.findall(r"`([a-z0-9_]+/[a-z0-9_/]+)`", label) or ["null_population/lenet5/100"]
    contender = "banded" if "banded" in label else "ours"
    own = kept[name[0], contender][-1]
    assert unit == own["unit"]
    assert ours == like(ours, own["rate"]["median"])
    assert peer == like(peer, kept[name[0], "pytorch"][-1]["rate"]["median"])
    assert numbers(over_peer) == ratio(over_peer, own["ratio_to"]["pytorch"])
