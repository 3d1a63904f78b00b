"""What samples must be before anything is tested on them."""

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.dataset_inference import overlap
from dfke_jax.dataset_inference.samples import checked_images, checked_samples

LEVELS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
BOX = (-1.0, 3.0)


def floats(levels, box):
    return (box[0] + (box[1] - box[0]) * levels / 255).astype(np.float32)


@pytest.mark.parametrize("box", [(0.0, 1.0), BOX])
def test_equal_images_are_found_at_8_bits_whatever_they_are_kept_as(box):
    public = np.concatenate([LEVELS[3:5] + 100, LEVELS[:1], LEVELS[4:5]])
    expected = [(0, 2), (4, 3)]
    assert overlap(LEVELS, public) == expected
    assert overlap(floats(LEVELS, box), public, box) == expected
    nudged = floats(LEVELS, box) + 0.4 * (box[1] - box[0]) / 255
    assert overlap(nudged, floats(public, box), box) == expected, "within half a level"
    assert overlap(nudged + 0.2 * (box[1] - box[0]) / 255, public, box) == [], "beyond it"


def test_values_outside_are_those_of_the_ends_and_shape_counts():
    assert overlap(np.full((1, 2, 2), -0.5), np.zeros((1, 2, 2))) == [(0, 0)]
    assert overlap(np.full((1, 2, 2), 1.5), np.full((1, 2, 2), 255, np.uint8)) == [(0, 0)]
    assert overlap(np.zeros((1, 2, 2)), np.zeros((1, 4))) == []
    assert overlap(np.zeros((2, 2, 2)), np.zeros((1, 2, 2))) == [(0, 0)], "the first of equal private ones"


@pytest.mark.parametrize("box", [(0.0, 1.0), BOX])
def test_bytes_become_floats_in_the_box(box):
    found = checked_images(LEVELS, "private", box)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, floats(LEVELS, box), atol=1e-6)
    ends = np.array([[box[0], box[1]]])
    np.testing.assert_array_equal(checked_images(ends, "private", box), ends.astype(np.float32))


def test_pairs_and_labels():
    images, labels = checked_samples((LEVELS, [0, 1, 2, 0, 0, 0]), "private", (0.0, 1.0))
    assert images.shape == LEVELS.shape
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 0, 0])
    checked_samples((LEVELS[:1], [0]), "private", (0.0, 1.0))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (LEVELS, "private samples must be a pair"),
        (7, "private samples must be a pair"),
        ((LEVELS[:0], []), "at least one sample"),
        ((np.zeros(6), np.zeros(6, int)), r"must be \(N, ...\)"),
        ((np.full((6, 2), np.nan), np.zeros(6, int)), "NaN or infinity"),
        ((np.where(np.arange(12).reshape(6, 2) == 3, np.inf, 0.5), np.zeros(6, int)), "NaN or infinity"),
        ((np.full((6, 2), 1.01), np.zeros(6, int)), r"must lie in \[0.0, 1.0\], got 1.01 to 1.01"),
        ((np.where(np.arange(12).reshape(6, 2) == 3, -0.01, 0.5), np.zeros(6, int)), r"got -0.01 to 0.5"),
        ((LEVELS, [0, 1]), "private labels"),
        ((LEVELS, [0, 1, 2, -1, 0, 0]), "private labels"),
    ],
)
def test_what_is_refused(samples, message):
    with pytest.raises(InputError, match=message):
        checked_samples(samples, "private", (0.0, 1.0))
