"""What the tests of recipes share: small settings, and what a finished run of any recipe must have left."""

import contextlib
import dataclasses
import json
import sys

import numpy as np

from dfke_jax.experiments import Result, recipe, run_recipe

TINY = {
    "seeds": 2,
    "teacher": "mlp_small",
    "student": "mlp_small",
    "teacher_steps": 30,
    "teacher_batch": 32,
    "distillation_steps": 20,
    "distillation_batch": 16,
    "arbitrary": 10,
}
"""Of these every recipe takes those that it has."""
_NOT_A_USE = (
    "dataclasses", "dfke_jax.core.checkpoint", "dfke_jax.core.checks", "dfke_jax.experiments.bench.settings",
)  # fmt: skip
_NOR_IN = ("__eq__", "__hash__", "__repr__", "__post_init__")


def tiny(name, changes, **more):
    """The settings of a recipe for digits, small, with the test's changes; syntheses take three steps."""
    known = {field.name for field in dataclasses.fields(recipe(name).config)}
    common = {field: value for field, value in TINY.items() if field in known}
    settings = recipe(name).settings("digits", **{**common, **changes, **more})
    if hasattr(settings, "synthesis"):
        settings = dataclasses.replace(settings, synthesis=dataclasses.replace(settings.synthesis, steps=3))
    return settings


@contextlib.contextmanager
def reads_of(settings):
    """The fields of settings that are read within the block; to copy, check, compare or print them is no use of them."""
    kind, seen = type(settings), set()
    fields = options(settings)

    def recorded(self, name):
        if name in fields:
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__") not in _NOT_A_USE and caller.f_code.co_name not in _NOR_IN:
                seen.add(name)
        return object.__getattribute__(self, name)

    assert "__getattribute__" not in vars(kind)
    kind.__getattribute__ = recorded
    try:
        yield seen
    finally:
        del kind.__getattribute__


def options(settings):
    """The fields that a user can set."""
    return {field.name for field in dataclasses.fields(settings) if field.init}


def run_small(name, settings, out, unread=()):
    """Runs a recipe; its `Result`. Of its settings all are read but those that the caller names (None: not checked)."""
    with reads_of(settings) as seen:
        found = run_recipe(recipe(name), settings, out=out, progress=False, devices=1)
    if unread is not None:
        assert options(settings) - seen == set(unread), "options of a recipe that change nothing"
    return found


def complete(name, settings, tmp_path, unread=(), pictures=True):
    """Runs a recipe over two seeds and checks what every result has.

    Args:
      name, settings: of the recipe. tmp_path: for its files, in ``run``.
      unread: settings that this run does not read, exactly. pictures: whether method and control leave samples.

    Returns:
      The `Result`.
    """
    out = tmp_path / "run"
    found = run_small(name, settings, out, unread)
    content = json.loads((out / "result.json").read_text())
    assert content["recipe"] == name
    assert content["metrics"] == json.loads(json.dumps(found.metrics))
    assert set(content["config"]) == {field.name for field in dataclasses.fields(settings)}
    assert {"jax", "flax"} <= set(content["environment"]["versions"])
    assert content["seconds"]["total"] > 0
    for arm in found.arms:
        assert len(arm.accuracy) == 2, arm.name
        assert all(0 <= value <= 100 for value in arm.accuracy)
        assert arm.role == "teacher" or len(arm.agreement) == 2
        assert arm.budget
    assert {"teacher", "anchor"} <= {arm.role for arm in found.arms}
    if name != "anchors":
        assert found.pairs(), "a method without a matched control"
        assert {method.name for method, _ in found.pairs()} >= {a.name for a in found.arms if a.role == "method"}
    assert Result.read(out).metrics == found.metrics
    if pictures:
        samples = np.load(out / "samples.npz")
        method = next(arm.name for arm in found.arms if arm.role == "method")
        control = next(arm.name for arm in found.arms if arm.role == "control")
        assert samples[method].shape[1:] == (8, 8, 1)
        assert not np.array_equal(samples[method], samples[control])
    return found
