"""Settings that mean nothing are refused, and recipes list those alone that they read."""

import dataclasses

import pytest
from small_runs import reads_of

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.experiments import recipe
from dfke_jax.experiments.bench.settings import augmentation, network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"distillation_steps": 0}, "distillation_steps"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_learning_rate": -1.0}, "learning rates"),
        ({"augmentation": "afine"}, "nearest: affine"),
        ({"teacher": "lenet55"}, "lenet5"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        recipe("zskd").settings("digits", **changes)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("dfme", {"distillation_steps", "temperature", "augmentation", "real_augmentation"}),
        ("knockoff", {"distillation_batch", "temperature"}),
        ("active-thief", {"noise"}),  # its control chooses at random among the same images
        ("megex", {"reveal", "decimals"}),  # it reads probabilities as they are
        ("defences", {"reveal", "decimals", "temperature"}),  # the table's rows say what is revealed
        ("dafl", {"augmentation"}),
        ("watermark-removal", {"student", "temperature"}),
        ("ewe", {"distillation_steps", "augmentation"}),
        ("dataset-inference", {"real_augmentation"}),
        ("dataset-inference-limits", {"temperature", "augmentation", "impressions", "early", "other_network"}),
        ("encoder-inference", {"teacher_augmentation", "temperature", "augmentation"}),
    ],
)
def test_what_a_recipe_does_not_read_is_no_option_of_it(name, absent):
    """That all which are left are read is recorded wherever a recipe is run, by `small_runs.run_small`."""
    assert not absent & {field.name for field in dataclasses.fields(recipe(name).config)}


def test_reads_are_recorded_and_copies_are_not():
    settings = recipe("zskd").settings("digits")
    with reads_of(settings) as seen:
        dataclasses.asdict(settings)
        dataclasses.replace(settings, seeds=1)
        assert settings == dataclasses.replace(settings)
        assert seen == set()
        _ = settings.temperature
    assert seen == {"temperature"}
    _ = settings.seeds
    assert seen == {"temperature"}


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="lenet5"):
        network("lenet55", 10, (28, 28, 1))
    with pytest.raises(UnknownNameError):
        augmentation("none at all")
