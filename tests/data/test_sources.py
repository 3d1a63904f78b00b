"""Loading: bundled digits, .npz files, prepared TFDS directories, and what is said when data are missing."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dfke_jax.core.errors import InputError, MissingDataError, UnknownNameError
from dfke_jax.data import available, load, sources, tfds_directory


@pytest.fixture(autouse=True)
def _no_data_directory(monkeypatch, tmp_path_factory):
    """Tests say where data are; nothing is found by accident."""
    monkeypatch.delenv("DFKE_DATA_DIR", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def test_a_file_by_the_sets_name_serves_where_it_is_not_prepared(tmp_path):
    arrays = write_npz(tmp_path / "mnist.npz")
    found = load("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(found.train.images[..., 0], arrays["x_train"].reshape(found.train.images.shape[:3]))
    row = next(row for row in available(tmp_path) if row.name == "mnist")
    assert (row.found, row.where) == (True, str(tmp_path / "mnist.npz"))


def test_digits_are_a_stratified_partition():
    from sklearn.datasets import load_digits

    digits, again = load("digits"), load("digits")
    assert digits.shape == (8, 8, 1)
    assert (len(digits.train), len(digits.test), digits.num_classes) == (1437, 360, 10)
    assert digits.train.images.dtype == np.float32
    assert digits.train.images.max() == 1
    np.testing.assert_array_equal(digits.test.images, again.test.images)
    bunch = load_digits()
    share = np.bincount(bunch.target) * 360 / 1797
    assert np.abs(np.bincount(digits.test.labels) - share).max() < 1
    # Together the two splits are the original rows, each once.
    rows = np.concatenate([digits.train.images, digits.test.images])[..., 0] * 16
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    both = sorted((tuple(row.ravel()), label) for row, label in zip(rows, labels, strict=True))
    assert both == sorted((tuple(row.ravel()), label) for row, label in zip(bunch.images, bunch.target, strict=True))


def test_the_synthetic_task_is_what_it_says():
    """Standard noise around ten centres in 16 pixels, behind a sigmoid; the same rows every time."""
    task, again = load("synthetic"), load("synthetic")
    assert (task.shape, task.num_classes, len(task.train), len(task.test)) == ((8, 16, 1), 10, 40_000, 2_000)
    np.testing.assert_array_equal(task.train.images, again.train.images)
    images, labels = task.train.images.reshape(-1, 128).astype(float), task.train.labels
    values = np.log(images / (1 - images))
    assert np.ptp(np.bincount(labels)) == 0
    noise = values[:, 16:]
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 1) < 0.005
    centres = np.stack([values[labels == k, :16].mean(0) for k in range(10)])
    within = values[:, :16] - centres[labels]
    assert abs(within.std() - 1) < 0.005
    assert abs(np.corrcoef(within.T) - np.eye(16)).max() < 0.03
    # centres are 0.9 times standard normal numbers, 160 of them
    assert 0.75 < centres.std() < 1.05
    other = np.stack(
        [
            np.log(x / (1 - x)).mean(0)
            for x in (task.test.images[task.test.labels == k].reshape(-1, 128)[:, :16].astype(float) for k in range(10))
        ]
    )
    assert np.abs(other - centres).max() < 0.4  # the test rows belong to the same classes
    train = {row.tobytes() for row in task.train.images}
    assert not any(row.tobytes() in train for row in task.test.images)


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 5, 4), np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (4, 5, 4), np.uint8),
        "y_test": np.arange(4) % 3,
        **changes,
    }
    arrays = {name: values for name, values in arrays.items() if values is not None}
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("layout", ["grey", "channel", "column labels", "float"])
def test_npz_layouts(tmp_path, layout):
    path = tmp_path / "mine.npz"
    changes = {
        "grey": {},
        "channel": {"x_train": np.zeros((12, 5, 4, 3), np.uint8), "x_test": np.zeros((4, 5, 4, 3), np.uint8)},
        "column labels": {"y_train": np.arange(12)[:, None] % 3, "y_test": np.arange(4)[:, None] % 3},
        "float": {"x_train": np.full((12, 5, 4), 0.5), "x_test": np.full((4, 5, 4), 0.25)},
    }[layout]
    arrays = write_npz(path, **changes)
    data = load(str(path))
    assert data.shape == ((5, 4, 3) if layout == "channel" else (5, 4, 1))
    assert data.train.images.dtype == (np.float32 if layout == "float" else np.uint8)
    np.testing.assert_array_equal(data.train.images.reshape(arrays["x_train"].shape), arrays["x_train"])
    np.testing.assert_array_equal(data.test.labels, np.arange(4) % 3)
    assert (data.name, data.num_classes, data.source) == ("mine", 3, "npz:mine.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test; it has"),
        ({"y_train": np.zeros((12, 3), int)}, "x_train and y_train: labels must have shape"),
        ({"x_test": np.full((4, 5, 4), 255.0)}, "x_test and y_test: images must lie in"),
        ({"y_test": np.array([0, 1, 2, 3])}, r"test labels of broken must lie in \[0, 3\)"),
        ({"y_train": np.arange(12) % 2 * 2}, "no sample of class 1"),
        ({"y_train": np.array(list("abcabcabcabc"), object)}, "cannot be read"),
    ],
)
def test_npz_errors(tmp_path, changes, message):
    path = tmp_path / "broken.npz"
    write_npz(path, **changes)
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_file_that_is_no_archive(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("not an archive")
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file"):
        load(path)
    with pytest.raises(MissingDataError, match=r"there is no file .*absent\.npz"):
        load(tmp_path / "absent.npz")


def prepare(
    root,
    given_name,
    *,
    splits=("train", "test"),
    shape=(6, 5, 1),
    features=None,
    supervised=("image", "label"),
    version="1.0.0",
    config=None,
    file_format="array_record",
):
    """Writes a small TFDS set, without TensorFlow: images enter as PNG files."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(len(version) + (config is not None))
    pixels = {part: rng.integers(0, 256, (9, *[side or 5 for side in shape]), np.uint8) for part in splits}

    def png(values):
        buffer = io.BytesIO()
        Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(buffer, "png")
        buffer.seek(0)
        return buffer

    def examples(part):
        for row, values in enumerate(pixels[part]):
            full = {"image": png(values), "label": row % 3, "coarse": 0, "number": row}
            yield row, {key: full[key] for key in described}

    described = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=["ape", "bee", "cow"]),
        "number": tfds.features.Scalar(np.int64),
    }

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = given_name
        pkg_dir_path = root
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            described_as = tfds.features.FeaturesDict(described)
            return tfds.core.DatasetInfo(builder=self, features=described_as, supervised_keys=supervised)

        def _split_generators(self, manager):
            return {part: examples(part) for part in splits}

        def _generate_examples(self):
            return iter(())

    Toy(data_dir=root, file_format=file_format).download_and_prepare()
    return pixels


@pytest.mark.parametrize("shape", [(6, 5, 1), (6, 5, 3)])
def test_a_prepared_set_is_read_exactly(tmp_path, shape):
    pixels = prepare(tmp_path, "toy_set", shape=shape)
    data = load("toy_set", data_dir=tmp_path)
    assert data.shape == shape
    assert data.class_names == ("ape", "bee", "cow")
    assert data.source == "tfds:toy_set/1.0.0"
    for split, expected in ((data.train, pixels["train"]), (data.test, pixels["test"])):
        assert split.images.dtype == np.uint8
        found = sorted((image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True))
        assert found == sorted((image.tobytes(), row % 3) for row, image in enumerate(expected))


def test_where_a_set_is_looked_for(tmp_path, monkeypatch):
    prepare(tmp_path / "tfds", "toy_set")
    assert load("toy_set", data_dir=tmp_path / "tfds").num_classes == 3
    assert load("toy_set", data_dir=str(tmp_path)).num_classes == 3
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load("toy_set").num_classes == 3
    monkeypatch.setenv("DFKE_DATA_DIR", str(tmp_path / "elsewhere"))
    assert tfds_directory() == tmp_path / "elsewhere"
    with pytest.raises(UnknownNameError, match="toy_set"):
        load("toy_set")
    assert load("toy_set", data_dir=tmp_path).num_classes == 3


def test_versions_and_configurations(tmp_path):
    prepare(tmp_path, "toy_set", version="1.9.0")
    prepare(tmp_path, "toy_set", version="1.10.0")
    assert load("toy_set", data_dir=tmp_path).source == "tfds:toy_set/1.10.0"
    for name in ("toy_set:1.9.0", "toy_set/1.9.0"):
        assert load(name, data_dir=tmp_path).source == "tfds:toy_set/1.9.0"
    prepare(tmp_path, "letters", config="small")
    assert load("letters", data_dir=tmp_path).source == "tfds:letters/small/1.0.0"
    prepare(tmp_path, "letters", config="large")
    assert load("letters/small", data_dir=tmp_path).source == "tfds:letters/small/1.0.0"
    assert load("letters/large:1.0.0", data_dir=tmp_path).source == "tfds:letters/large/1.0.0"
    with pytest.raises(InputError, match="name one of letters/large, letters/small"):
        load("letters", data_dir=tmp_path)


def test_a_validation_split_stands_in_for_a_test_split(tmp_path):
    pixels = prepare(tmp_path, "toy_set", splits=("train", "validation"))
    data = load("toy_set", data_dir=tmp_path)
    assert data.test.images.sum() == pixels["validation"].sum()
    assert data.source == "tfds:toy_set/1.0.0, validation as test"
    prepare(tmp_path, "only", splits=("train",))
    with pytest.raises(InputError, match="needs the splits train and test"):
        load("only", data_dir=tmp_path)


def test_sets_that_are_not_image_classification(tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(6, 5, 1)), tfds.features.ClassLabel(num_classes=3)
    prepare(tmp_path, "numbers", features={"number": tfds.features.Scalar(np.int64)}, supervised=None)
    prepare(tmp_path, "doubtful", features={"image": image, "label": label, "coarse": label}, supervised=None)
    prepare(tmp_path, "clear", features={"image": image, "coarse": label}, supervised=None)
    prepare(tmp_path, "sizes", shape=(None, None, 1))
    with pytest.raises(InputError, match="not image classification: its features are number: Scalar"):
        load("numbers", data_dir=tmp_path)
    with pytest.raises(InputError, match="not image classification"):
        load("doubtful", data_dir=tmp_path)
    with pytest.raises(InputError, match="no sample of class 1, 2"):
        load("clear", data_dir=tmp_path)
    with pytest.raises(InputError, match="differ in size"):
        load("sizes", data_dir=tmp_path)


def test_a_missing_set_says_where_and_what_to_do(tmp_path):
    with pytest.raises(MissingDataError) as caught:
        load("mnist", data_dir=tmp_path)
    message = str(caught.value)
    for part in (
        str(tmp_path / "mnist"),
        "--data-dir",
        "DFKE_DATA_DIR",
        "download_and_prepare",
        "TensorFlow",
    ):
        assert part in message
    with pytest.raises(MissingDataError, match=r"tensorflow_datasets[/\\]cifar10"):
        load("cifar10")
    # Known to TFDS, though not one of the suggestions.
    with pytest.raises(MissingDataError, match="stanford_dogs"):
        load("stanford_dogs", data_dir=tmp_path)


def test_an_unprepared_directory_is_missing_data(tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(MissingDataError, match="not prepared"):
        load("mnist", data_dir=tmp_path)
    with pytest.raises(MissingDataError, match="not prepared"):
        load("mnist:2.0.0", data_dir=tmp_path)


def test_a_set_that_only_tensorflow_reads_says_so(tmp_path):
    prepare(tmp_path, "toy_set")
    info = tmp_path / "toy_set" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(MissingDataError, match=r"stored as tfrecord, which only TensorFlow reads\. .*array_record"):
        load("toy_set", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "near"),
    [("mnyst", "mnist"), ("digit", "digits"), ("fashion-mnist", "fashion_mnist"), ("../x", "known")],
)
def test_an_unknown_name_gets_suggestions(tmp_path, name, near):
    with pytest.raises(UnknownNameError, match=f"unknown data set .*{near}"):
        load(name, data_dir=tmp_path)


def test_available_lists_what_is_there(tmp_path):
    prepare(tmp_path, "toy_set")
    (tmp_path / "downloads").mkdir(exist_ok=True)
    rows = {row.name: row for row in available(tmp_path)}
    assert set(rows) == {"digits", "synthetic", "tones", "toy_set", *sources.WELL_KNOWN}
    assert rows["digits"].found
    assert rows["toy_set"].found
    assert rows["toy_set"].where == str(tmp_path / "toy_set")
    assert not rows["mnist"].found
    assert "--data-dir" in rows["mnist"].where
    assert not any(
        row.found for row in available(tmp_path / "absent") if row.name not in ("digits", "synthetic", "tones")
    )


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("sklearn", "tensorflow_datasets", "tensorflow", "array_record", "torch")
    code = f"import sys, dfke_jax.data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        pytest.param("fashion_mnist", [1000] * 10, marks=pytest.mark.slow),
    ],
)
def test_real_sets(data_dir, name, counts):
    data = load(name, data_dir=data_dir)
    assert data.shape == (28, 28, 1)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    np.testing.assert_array_equal(np.bincount(data.test.labels), counts)
    assert data.train.images.dtype == np.uint8
    assert data.train.images.max() == 255
