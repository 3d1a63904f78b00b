"""What the comparison of watermarking schemes refuses before any work."""

import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.marking import SCHEMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ("uchida", "adi")}, "unknown watermarking scheme 'adi'"),
        ({"schemes": ("dawn", "dawn")}, "must be distinct"),
        ({"schemes": ()}, "at least one"),
        ({"independents": 1}, "independents must be at least 2"),
        ({"radioactive_share": 0.0}, "radioactive_share"),
        ({"alpha": 1.0}, "alpha"),
        ({"bits": 0}, "bits must be at least 1"),
        ({"schemes": ("zhang_unrelated",)}, "needs a data set"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        recipe("watermark-schemes").settings("digits", **changes)


def test_source_and_target_are_two_classes(tmp_path):
    settings = recipe("watermark-schemes").settings("digits", source=3, target=10)
    with pytest.raises(InputError, match="two of the 10 classes"):
        run_recipe(recipe("watermark-schemes"), settings, out=tmp_path, progress=False, devices=1)


def test_presets_run_every_scheme_that_their_data_allow():
    for dataset in ("mnist", "fashion_mnist"):
        assert set(recipe("watermark-schemes").settings(dataset).schemes) == set(SCHEMES)
    assert set(SCHEMES) - set(recipe("watermark-schemes").settings("digits").schemes) == {"zhang_unrelated"}
