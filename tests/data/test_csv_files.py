"""CSV files as data sets: tables as images of one pixel, and pixels as images."""

import csv

import numpy as np
import pytest

from dfke_jax.core.errors import InputError, MissingDataError
from dfke_jax.data import load, load_table
from dfke_jax.data.csv_files import file_of, is_csv, standard, uniform_rows


def written(path, names, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.fixture
def people(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        [rng.integers(20, 70), f"{rng.normal():.3f}", ("cook", "clerk", "driver")[i % 3], ("yes", "no")[i % 2]]
        for i in range(60)
    ]
    return written(tmp_path / "people.csv", ["age", "score", "job", "buys"], rows)


def test_a_table_is_images_of_one_pixel_on_the_scale_of_tables(people, getkey):
    found = load(f"{people}:buys")
    table = load_table(people, getkey(), target="buys")
    assert (found.shape, found.class_names, found.name) == ((1, 1, 5), ("no", "yes"), "people")
    assert found.schema == table.schema
    mean, std = standard(found.schema)
    assert (mean, std) == ((0.5, 0.5, 0.0, 0.0, 0.0), (0.5, 0.5, 1.0, 1.0, 1.0))
    images = np.concatenate([found.train.images, found.test.images]).reshape(60, 5)
    ours = (images - np.array(mean)) / np.array(std)
    theirs = np.concatenate([table.train_rows, table.test_rows])
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-6)
    assert np.bincount(found.test.labels).tolist() == [6, 6]


def test_random_rows_are_rows(people):
    schema = load(f"{people}:buys").schema
    rows = uniform_rows(schema, np.random.default_rng(0), 50).reshape(50, 5)
    mean, std = standard(schema)
    back = schema.rows(schema.codes((rows - np.array(mean)) / np.array(std)))
    np.testing.assert_allclose(back * np.array(std) + np.array(mean), rows, atol=1e-6)
    assert rows[:, :2].min() >= 0
    assert rows[:, :2].max() <= 1
    assert (rows[:, 2:].sum(1) == 1).all()


def test_which_column_is_the_class(people, tmp_path):
    with pytest.raises(InputError, match=r"which column of .* is the class\? Write .*:COLUMN.*age, score, job, buys"):
        load(people)
    named = written(tmp_path / "named.csv", ["a", "y"], [[i, i % 2] for i in range(10)])
    assert load(named).class_names == ("0", "1")
    bare = load(f"{people}:-")
    assert (bare.labelled, bare.num_classes, bare.shape) == (False, 0, (1, 1, 7))
    with pytest.raises(ValueError, match="unknown column 'bys'"):
        load(f"{people}:bys")
    with pytest.raises(InputError, match="'score' holds numbers, and not classes"):
        load(f"{people}:score")
    with pytest.raises(MissingDataError, match="there is no file"):
        load(f"{tmp_path}/absent.csv:y")


@pytest.mark.parametrize(
    "names", [[f"pixel{i}" for i in range(16)], [f"{i}x{j}" for i in range(1, 5) for j in range(1, 5)]]
)
def test_columns_of_pixels_are_images(tmp_path, names):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16))
    path = written(tmp_path / "p.csv", ["digit", *names], [[i % 4, *row] for i, row in enumerate(pixels)])
    found = load(f"{path}:digit")
    assert (found.shape, found.train.images.dtype, found.schema) == ((4, 4, 1), np.uint8, None)
    assert {image.tobytes() for image in (*found.train.images, *found.test.images)} == {
        row.astype(np.uint8).tobytes() for row in pixels
    }


def test_columns_that_are_no_pixels(tmp_path):
    of = lambda count, value: written(
        tmp_path / "p.csv", ["y", *(f"pixel{i}" for i in range(count))], [[i % 2, *[value] * count] for i in range(6)]
    )
    with pytest.raises(InputError, match="5 columns of pixels, which are no square images"):
        load(of(5, 3))
    with pytest.raises(InputError, match="whole numbers from 0 to 255"):
        load(of(4, 256))
    with pytest.raises(InputError, match="columns of pixels hold words"):
        load(of(4, "x"))


def test_names_of_csv_files():
    assert all(map(is_csv, ("a.csv", "a/b.csv:c", "a.csv.gz", "a.csv.gz:c d", "C:\\a.csv:y")))
    assert not any(map(is_csv, ("digits", "a.csv/b", "a.npz", "a.csv:b/c", "csv")))
    assert [file_of(name) for name in ("a/b.csv:c", "a.csv.gz", "mnist:3.0.1")] == [
        "a/b.csv",
        "a.csv.gz",
        "mnist:3.0.1",
    ]
