"""Splits and data sets: what they accept, what they refuse."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfke_jax.core.errors import InputError
from dfke_jax.data import Dataset, Split
from dfke_jax.data.dataset import Unlabelled


def images(count=6, shape=(4, 3, 1), seed=0):
    return np.random.default_rng(seed).uniform(size=(count, *shape)).astype(np.float32)


def split(labels=(0, 1, 2, 0, 1, 2), **options):
    return Split(images(len(labels), **options), np.array(labels))


def test_a_data_set_knows_its_shape():
    data = Dataset("toy", split(), split((0, 1)), 3, ["a", "b", "c"], "here")
    assert data.shape == (4, 3, 1)
    assert data.class_names == ("a", "b", "c")
    assert data.train.labels.dtype == np.int32
    assert len(data.train) == 6


def test_a_split_is_shown_in_a_line():
    assert repr(split()) == "Split(6 images of 4×3×1, float32, labels)"
    assert repr(Unlabelled(images(2))) == "Unlabelled(2 images of 4×3×1, float32, no labels)"


def test_pixels_keep_their_type_where_it_is_narrow():
    assert Split(np.zeros((2, 3, 3, 1), np.uint8), np.array([0, 1])).images.dtype == np.uint8
    assert Split(np.zeros((2, 3, 3, 1), np.float64), np.array([0, 1], np.int64)).images.dtype == np.float32


def test_on_device_places_and_shards(four):
    toy = split((0, 1, 2, 0))
    pixels, labels = toy.on_device()
    assert isinstance(pixels, jax.Array)
    np.testing.assert_array_equal(pixels, toy.images)
    np.testing.assert_array_equal(labels, toy.labels)
    sharding = NamedSharding(Mesh(four, "data"), PartitionSpec("data"))
    pixels, labels = toy.on_device(sharding)
    assert pixels.sharding == labels.sharding == sharding
    assert pixels.addressable_shards[0].data.shape == (1, 4, 3, 1)


def test_subset():
    toy = split()
    np.testing.assert_array_equal(toy.subset(2).labels, [0, 1])
    np.testing.assert_array_equal(toy.subset([5, 0]).images, toy.images[[5, 0]])
    np.testing.assert_array_equal(toy.subset(toy.labels == 1).labels, [1, 1])
    for wrong in (0, 7, [], [6], [-1], [0.5], np.array([True])):
        with pytest.raises(InputError, match=r"subset|indices|mask"):
            toy.subset(wrong)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images(), np.zeros(5, int), r"shape \(6,\)"),
        (images(), np.zeros(6), "integers"),
        (images(), np.zeros((6, 1), int), r"shape \(6,\)"),
        (images(), np.full(6, -1), r"\[0, 1\)"),
        (images() * 255, np.zeros(6, int), r"lie in \[0.0, 1.0\]"),
        (images() * np.nan, np.zeros(6, int), "NaN or infinity in 6 of 6 rows"),
        (images()[..., 0], np.zeros(6, int), r"\(N, H, W, C\)"),
        (images(0), np.zeros(0, int), "empty"),
        (np.zeros((6, 2, 2, 1), int), np.zeros(6, int), "uint8 or floating"),
    ],
)
def test_a_split_refuses(pixels, labels, message):
    with pytest.raises(InputError, match=message):
        Split(pixels, labels)


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        (split(), split((0, 3)), 3, r"test labels of toy must lie in \[0, 3\), got 0 to 3"),
        (split((0, 2)), split(), 3, "training labels of toy have no sample of class 1"),
        (split(), split(shape=(4, 4, 1)), 3, "same"),
        (split((0, 0)), split((0, 0)), 1, "at least two classes"),
    ],
)
def test_a_data_set_refuses(train, test, classes, message):
    with pytest.raises(InputError, match=message):
        Dataset("toy", train, test, classes, tuple(map(str, range(classes))), "here")


def test_a_data_set_refuses_a_wrong_number_of_names():
    with pytest.raises(InputError, match="2 class names for 3 classes"):
        Dataset("toy", split(), split(), 3, ("a", "b"), "here")
