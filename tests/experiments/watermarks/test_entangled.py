"""The recipe of entangled watermarks, end to end, on a few images of digits."""

import numpy as np
import pytest
from small_runs import complete, tiny

from dfke_jax import data
from dfke_jax.core.errors import InputError
from dfke_jax.watermarking import EntangledSettings

RECIPES = ("ewe",)
CHANGES = {
    "marked_steps": 4,
    "extraction_steps": 20,
    "null_models": 2,
    "triggers": 32,
    "watermark": EntangledSettings(
        layers=("dense1",), entanglement=(1.0,), temperatures=(5.0,), batch_size=16, rounds=1, suppressions=2
    ),
}


@pytest.mark.slow
def test_recipe_runs_and_leaves_a_complete_result(tmp_path):
    found = complete("ewe", tiny("ewe", CHANGES), tmp_path, pictures=False)
    entangled_watermarks_are_held_against_the_false_rate(found, tmp_path / "run")


def entangled_watermarks_are_held_against_the_false_rate(found, out):
    arms = {arm.name: arm for arm in found.arms}
    victims, copies = ["entangled", "entangled_control", "ordinary"], ["extracted", "extracted_control", "extracted_ordinary"]  # fmt: skip
    assert list(arms) == ["teacher", *victims, *copies, "independent"]
    assert [arms[name].role for name in (*victims, *copies)] == ["method", "control", "control"] * 2
    for name, arm in list(arms.items())[1:]:
        for seed in range(2):
            figures = {name: values[seed] for name, values in arm.metrics.items()}
            assert 0 <= figures["false_rate"] <= figures["highest_false_rate"] <= 100
            assert 1 <= figures["queries"] <= 10_000
            assert 0 <= figures["claimed_with_100"] <= 100
            alike = "ordinary" if name.endswith("ordinary") else "independent"  # of the same triggers
            assert figures["false_rate"] == arms[alike].metrics["false_rate"][seed]
            if name in victims:
                assert 0 <= figures["mixing_dense1"] <= 1
                assert 0 <= figures["answered_target"] <= 100
    for difference, control in (("same", "control"), ("ordinary", "ordinary")):
        successes = [arms[name].metrics["watermark_success"] for name in ("extracted", f"extracted_{control}")]
        np.testing.assert_allclose(
            arms["extracted"].metrics[f"above_{difference}_triggers"], np.subtract(*successes), atol=1e-5
        )
    kept = np.load(out / "samples.npz")
    assert kept["entangled"].shape == kept["ordinary"].shape == (10, 8, 8, 1)
    turned = np.rot90(found_ones(), axes=(1, 2))[:10]
    np.testing.assert_allclose(kept["ordinary"], np.round(turned * 255), atol=1)
    assert not np.array_equal(kept["entangled"], kept["ordinary"])


def found_ones():
    digits = data.load("digits")
    return digits.train.images[digits.train.labels == 1]


def test_entangled_watermarks_that_cannot_be_are_refused_before_any_work():
    with pytest.raises(InputError, match="positive weights"):
        tiny("ewe", {**CHANGES, "watermark": CHANGES["watermark"].plain_backdoor()})
    with pytest.raises(InputError, match="set unrelated"):
        tiny("ewe", {**CHANGES, "unrelated": ""})
