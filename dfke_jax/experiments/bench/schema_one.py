"""Results of the first schema, whose series, trials and factors were spelt in the names of metrics and arms.

They are put into today's form when they are read; nothing else looks into names.
"""

import re
from typing import Any

_TESTS = ("welch", "permutation", "conformal")
_TESTS += tuple(f"{test}_either" for test in _TESTS)
_STRENGTHS = {"magnitude_pruning": "share", "dormant_pruning": "share", "quantisation": "bits"}
_SERIES = (  # of a metric's name: figure and point; what was varied
    (re.compile(r"(accuracy)_at_(\d+)"), "queries"),
    (re.compile(r"(accuracy|trigger_accuracy)@([\d.]+)"), "strength"),
    (re.compile(r"(p)_at_(\d+)"), "revealed"),
    (re.compile(r"(welch|effect)_overlap_(\d+)"), "overlap"),
    (re.compile(r"(welch|effect|new_task)_after_(\d+)"), "forgetting"),
)
_AT = re.compile(r"(.+)_(\d+)")
_EXTRACTION = (
    "dfme", "maze", "megex", "disguide", "dual-students", "dfms", "knockoff", "knockoff-bandit", "active-thief",
    "copycat", "dissector", "jbda",
)  # fmt: skip
_BEHIND = "_behind_"


def from_schema_one(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a `result.json` of schema 1 in the form of schema 2, every figure untouched."""
    labels = {arm["name"]: arm["label"] for arm in content["arms"]}
    arms = [_arm(content["recipe"], arm, labels) for arm in content["arms"]]
    attacks = {_AT.sub(r"\1", arm["name"]): arm["factors"].get("attack") for arm in arms if arm["role"] == "method"}
    published = [{**figure, "factors": _published(figure["arm"], attacks)} for figure in content["published"]]
    return {**content, "schema": 2, "arms": arms, "published": published}


def _arm(recipe: str, arm: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    metrics, series, trials = {}, {}, {}
    tested = "welch" in arm["metrics"]
    for name, values in arm["metrics"].items():
        found = next(((m, over) for pattern, over in _SERIES if (m := pattern.fullmatch(name))), None)
        if found:
            (figure, point), over = found[0].groups(), found[1]
            if over == "strength":
                over = _STRENGTHS.get(arm["name"].partition(".")[2], "steps")
            series.setdefault((figure if figure != "p" else "welch", over), {})[float(point)] = values
        elif tested and name in _TESTS:
            trials.setdefault(name, {"test": name})["p_values"] = values
        elif tested and name.startswith("false_positives_"):
            test = name.removeprefix("false_positives_")
            trials.setdefault(test, {"test": test})["false_positives"] = values
        else:
            metrics[name] = values
    return {
        **arm,
        "metrics": metrics,
        "factors": _factors(recipe, arm, labels),
        "series": [_series(figure, over, points) for (figure, over), points in series.items()],
        "trials": list(trials.values()),
    }


def _series(name: str, over: str, points: dict[float, list[float]]) -> dict[str, Any]:
    x = sorted(points)
    return {"name": name, "over": over, "x": x, "y": [list(row) for row in zip(*(points[p] for p in x), strict=True)]}


def _factors(recipe: str, arm: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    name = arm["name"]
    if recipe == "defences" and _BEHIND in name:
        attack, _, defence = arm["label"].partition(" behind ")
        return {"attack": attack, "defence": defence}
    match = _AT.fullmatch(name.removesuffix("_control"))
    if recipe in _EXTRACTION and match:
        budget = int(match[2])
        label = (labels.get(match[0]) or arm["label"]).removesuffix(f", {budget:,} queries")
        return {"attack": label, "queries": budget}
    if recipe == "watermark-removal":
        mark, _, attack = name.partition(".")
        if attack or arm["role"] == "method":
            attack = attack.removesuffix("_control").replace("_", " ")
            return {"mark": labels.get(mark, mark), "attack": attack or "none"}
    return {}


def _published(arm: str, attacks: dict[str, Any]) -> dict[str, Any]:
    match = _AT.fullmatch(arm)
    attack = attacks.get(match[1]) if match else None
    return {"attack": attack, "queries": int(match[2])} if match and attack else {}


__all__ = ["from_schema_one"]
