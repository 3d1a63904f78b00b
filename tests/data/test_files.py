"""Data sets of one's own: arrays under any of the known names, and folders of pictures by class."""

import numpy as np
import pytest
from PIL import Image

from dfke_jax.core.errors import InputError
from dfke_jax.data import Dataset, Split, load
from dfke_jax.data.dataset import Unlabelled
from dfke_jax.data.files import divided, holds_classes, read_npz


def folder(path, classes, count=5, size=(4, 6), mode="L", seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(path / name / f"{i}.png")
    return path


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_a_file_without_a_test_split_is_divided_by_class(tmp_path, names):
    images = np.random.default_rng(0).random((60, 4, 4, 1)).astype(np.float32)
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (images, labels), strict=True)))
    found = load(tmp_path / "mine.npz")
    assert np.bincount(found.test.labels).tolist() == [2, 4, 6]
    together = np.concatenate([found.train.images, found.test.images])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in images}
    again = load(tmp_path / "mine.npz")
    assert (again.train.fingerprint, again.test.fingerprint) == (found.train.fingerprint, found.test.fingerprint)


def test_channels_that_come_first_get_a_question(tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.zeros((9, 3, 8, 8), np.uint8), labels=np.arange(9) % 3)
    with pytest.raises(InputError, match=r"do they come first\? Then save images.transpose\(0, 2, 3, 1\)"):
        load(tmp_path / "mine.npz")
    np.savez(tmp_path / "mine.npz", images=np.zeros((9, 8, 8, 7), np.uint8), labels=np.arange(9) % 3)
    with pytest.raises(InputError, match="1, 3 or 4 channels belong on the last axis, and it has 7"):
        read_npz(tmp_path / "mine.npz")


def test_a_folder_of_classes(tmp_path):
    path = folder(tmp_path / "pets", ["cat", "dog"])
    found = load(path)
    assert (found.name, found.class_names, found.shape) == ("pets", ("cat", "dog"), (4, 6, 1))
    assert (len(found.train), len(found.test)) == (8, 2)
    stored = np.asarray(Image.open(path / "cat" / "0.png"))
    assert any(np.array_equal(stored, image[..., 0]) for image in (*found.train.images, *found.test.images))


def test_a_folder_of_two_splits_keeps_colours_where_any_picture_has_them(tmp_path):
    folder(tmp_path / "pets" / "train", ["cat", "dog"])
    folder(tmp_path / "pets" / "test", ["cat", "dog"], 3, mode="RGB")
    found = load(tmp_path / "pets")
    assert (len(found.train), len(found.test), found.shape) == (10, 6, (4, 6, 3))
    assert (found.train.images[..., 0] == found.train.images[..., 2]).all()


def test_what_is_wrong_with_a_folder(tmp_path):
    folder(tmp_path / "a", ["cat"])
    with pytest.raises(InputError, match="at least two"):
        load(tmp_path / "a")
    folder(tmp_path / "b" / "train", ["cat", "dog"])
    with pytest.raises(InputError, match="needs a folder test beside it"):
        load(tmp_path / "b")
    folder(tmp_path / "b" / "test", ["cat", "cow"])
    with pytest.raises(InputError, match="not those of train"):
        load(tmp_path / "b")
    folder(tmp_path / "c", ["cat", "dog"])
    (tmp_path / "c" / "cat" / "bad.png").write_text("no picture")
    with pytest.raises(InputError, match=r"bad\.png cannot be read as a picture"):
        load(tmp_path / "c")
    (tmp_path / "c" / "cat" / "bad.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "c" / "cat" / "big.png")
    with pytest.raises(InputError, match="of several sizes"):
        load(tmp_path / "c")
    folder(tmp_path / "d", ["cat", "dog"])
    (tmp_path / "d" / "cow").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        load(tmp_path / "d")
    assert not holds_classes(tmp_path / "d" / "cow")


def test_a_class_of_one_cannot_be_divided():
    with pytest.raises(InputError, match="class 1 has one image"):
        divided(Split(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 0, 1])))


@pytest.mark.parametrize("names", [("x_train", "x_test"), ("images",), ("x",)])
def test_images_without_labels(tmp_path, names):
    images = np.random.default_rng(0).random((30, 4, 4, 1)).astype(np.float32)
    np.savez(
        tmp_path / "mine.npz", **dict(zip(names, np.split(images, [24]) if len(names) == 2 else [images], strict=True))
    )
    found = load(tmp_path / "mine.npz")
    assert (found.labelled, found.num_classes, len(found.train), len(found.test)) == (False, 0, 24, 6)
    assert {image.tobytes() for image in (*found.train.images, *found.test.images)} == {i.tobytes() for i in images}
    assert found.train.fingerprint != found.train.subset(5).fingerprint
    assert not found.train.subset(np.arange(5)).labelled
    with pytest.raises(InputError, match="the data has no labels, and what is asked for needs them"):
        _ = found.train.labels
    assert found.with_classes(7).num_classes == 7
    with pytest.raises(InputError, match="labels are needed here"):
        read_npz(tmp_path / "mine.npz")


def test_labels_of_one_split_alone_are_a_fault(tmp_path):
    np.savez(
        tmp_path / "mine.npz", x_train=np.zeros((4, 2, 2, 1)), x_test=np.zeros((2, 2, 2, 1)), y_train=np.arange(4) % 2
    )
    with pytest.raises(InputError, match="lacks y_test"):
        load(tmp_path / "mine.npz")
    labelled = Split(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4) % 2)
    with pytest.raises(InputError, match="one split has labels and the other has none"):
        Dataset("mine", labelled, Unlabelled(labelled.images), 2, ("0", "1"), "here")


def test_classes_are_unequal_beyond_a_ratio():
    train = Split(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3))
    of = lambda *counts: Dataset(
        "mine", train, Split(np.zeros((sum(counts), 1, 1, 1), np.uint8), np.repeat(range(3), counts)), 3, "abc", "here"
    )
    assert [of(*counts).unequal for counts in ((2, 3, 2), (2, 4, 3), (0, 2, 2), (0, 1, 2))] == [
        False,
        True,
        False,
        True,
    ]
