"""Tables: what their columns mean, how files are read, and what is refused."""

import gzip

import jax
import numpy as np
import pytest
from sklearn.datasets import load_iris

from dfke_jax import core
from dfke_jax.data import TABLES, Column, Schema, Table, load_table

CSV = """age,colour,size_S,size_L,answer
30,red,1,0,yes
20,blue,0,1,no
40,red,0,1,yes
25,green,1,0,no
35,red,1,0,yes
22,blue,0,1,no
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(CSV)
    return path


def whole(table):
    """All rows of a table, in the order of its two parts."""
    return np.concatenate([table.train_rows, table.test_rows])


def test_a_file_becomes_numbers_categories_and_classes(file, getkey):
    table = load_table(file, getkey(), target="answer", test_share=0.34)
    age, colour, size = table.schema.columns
    assert (age.units, age.step, age.categorical) == ((20, 40), 0.1, False)
    assert (colour.levels, colour.places) == (("blue", "green", "red"), (1, 2, 3))
    assert (size.levels, size.places) == (("S", "L"), (4, 5))
    assert table.class_names == ("no", "yes")
    rows = whole(table)
    assert rows.shape == (6, 6)
    assert (rows[:, 1:4].sum(1) == 1).all()
    assert (rows[:, 4:].sum(1) == 1).all()
    ages = sorted(round(age.unscaled(value)) for value in rows[:, 0])
    assert ages == [20, 22, 25, 30, 35, 40]
    assert table.schema.names == ("age", "colour=blue", "colour=green", "colour=red", "size=S", "size=L")
    targets = np.concatenate([table.train_targets, table.test_targets])
    np.testing.assert_array_equal(targets, rows[:, 3].astype(int), "the red ones said yes")


def test_gzip_one_hot_targets_named_groups_and_numbers_as_targets(file, getkey, tmp_path):
    packed = tmp_path / "people.csv.gz"
    packed.write_bytes(gzip.compress(CSV.encode()))
    key = getkey()
    by_size = load_table(packed, key, target="size")
    assert by_size.class_names == ("S", "L")
    assert by_size.schema.width == 6, "age, three colours, two answers"
    named = load_table(packed, key, target="answer", schema={"built": ["size_S", "size_L"]})
    assert named.schema.columns[-1].name == "built"
    heights = tmp_path / "heights.csv"
    heights.write_text("x,height\n" + "\n".join(f"{i},{i / 7}" for i in range(20)))
    table = load_table(heights, key, target="height")
    assert (table.num_classes, table.train_targets.dtype) == (0, np.float64)


def test_the_split_is_the_keys(getkey):
    key = getkey()
    first, again, other = (load_table("iris", k) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(first.test_rows, again.test_rows)
    assert not np.array_equal(first.test_rows, other.test_rows)
    assert (len(first.train_rows), len(first.test_rows)) == (105, 45)
    # the rows are scikit-learn's, scaled by their range
    data = load_iris().data
    scaled = 2 * (data - data.min(0)) / np.ptp(data, 0) - 1
    np.testing.assert_allclose(np.sort(whole(first), 0), np.sort(scaled, 0), atol=1e-15)


def test_uniform_rows_are_what_a_service_takes():
    schema = Schema(
        (Column("a", (0,), 2.0, 5.0), Column("b", (1, 2), levels=("x", "y")), Column("c", (3,), 0, 1, 0.25))
    )
    rows = schema.uniform(np.random.default_rng(0), 2000)
    assert rows[:, 0].min() >= 2
    assert rows[:, 0].max() <= 5
    assert abs(rows[:, 0].mean() - 3.5) < 0.1
    assert (rows[:, 1] + rows[:, 2] == 1).all()
    assert set(np.unique(rows[:, 3])) == {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_array_equal(schema.rows(schema.codes(rows)), rows)
    assert [end.tolist() for end in schema.box] == [[2, 0, 0, 0], [5, 1, 1, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "row 2 has 1 values"),
        ("a,a\n1,2\n", "line of different names"),
        ("a,b\n1,\n2,0\n", "1 values that are missing"),
        ("a,b\nnan,1\n2,0\n", "NaN or infinity"),
        ("b\n1\n0\n", "no columns but the target"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, getkey, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(core.InputError, match=message):
        load_table(path, getkey(), target="b")


def test_bad_input_is_refused(file, getkey, tmp_path, monkeypatch):
    key = getkey()
    with pytest.raises(core.UnknownNameError, match="irises"):
        load_table("irises", key)
    with pytest.raises(core.UnknownNameError, match="weight"):
        load_table(file, key, target="weight")
    with pytest.raises(core.UnknownNameError, match="size_M"):
        load_table(file, key, target="answer", schema={"size": ["size_S", "size_M"]})
    with pytest.raises(core.InputError, match="exactly one must be 1"):
        load_table(file, key, target="answer", schema={"size": ["size_S", "age"]})
    with pytest.raises(core.InputError, match="say which column"):
        load_table(file, key)
    with pytest.raises(core.InputError, match="test_share"):
        load_table("iris", key, test_share=1.0)
    monkeypatch.delenv("DFKE_DATA_DIR", raising=False)
    with pytest.raises(core.MissingDataError, match="DFKE_DATA_DIR"):
        load_table("german_credit", key)
    with pytest.raises(core.MissingDataError, match="there is no file"):
        load_table("german_credit", key, data_dir=tmp_path)
    with pytest.raises(core.InputError, match="places"):
        Schema((Column("a", (0,)), Column("b", (0,))))
    schema = Schema.of_numbers(2)
    with pytest.raises(core.InputError, match="of 2 classes 1"):
        Table("t", schema, np.zeros((3, 2)), np.zeros(3, int), np.zeros((1, 2)), np.zeros(1, int), ("a", "b"), "")
    with pytest.raises(core.InputError, match="NaN"):
        Table("t", schema, np.full((3, 2), np.nan), np.zeros(3, int), np.zeros((1, 2)), np.zeros(1, int), (), "")


@pytest.mark.parametrize(
    ("name", "width", "columns", "classes"),
    [("adult_income", 104, 13, 2), ("adult_race", 101, 13, 5), ("german_credit", 59, 21, 2)],
)
@pytest.mark.slow
def test_the_published_tables_are_read(data_dir, getkey, name, width, columns, classes):
    table = load_table(name, getkey(), data_dir=data_dir)
    assert (table.schema.width, len(table.schema.columns), table.num_classes) == (width, columns, classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith(("adult", "german"))])
def test_the_bundled_tables_are_read(getkey, name):
    table = load_table(name, getkey())
    assert np.abs(whole(table)).max() <= 1
