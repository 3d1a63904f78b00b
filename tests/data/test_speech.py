"""Spectrograms of spoken words: against a naive Fourier sum, and from a prepared directory that TFDS alone cannot open."""

import json

import numpy as np
import pytest

from dfke_jax.core.errors import InputError, MissingDataError
from dfke_jax.data import load
from dfke_jax.data.speech import log_mel, mel_bands

RNG = np.random.default_rng(11)


def naive(clip, frames):
    """Some frames of one clip, sum by sum, in float64."""
    x = np.concatenate([np.zeros(192), clip / 32768, np.zeros(192)])
    n, k = np.arange(512), np.arange(513)
    waves = np.exp(-2j * np.pi * np.outer(k, n) / 1024)
    window = 0.5 * (1 - np.cos(2 * np.pi * n / 512))
    return np.stack([np.abs(waves @ (window * x[128 * t : 128 * t + 512])) ** 2 @ mel_bands().T for t in frames])


def test_against_a_naive_fourier_sum():
    time = np.arange(16000) / 16000
    clip = (9000 * np.sin(2 * np.pi * 440 * time) * (time < 0.5) + RNG.normal(0, 300, 16000)).astype(np.int16)
    found = log_mel(clip[None])[0]
    assert found.shape == (125, 80)
    assert (found.min() >= 0, found.max()) == (True, 1)
    energy = naive(clip, range(125))
    np.testing.assert_allclose(found, 1 + np.log10(np.maximum(energy / energy.max(), 1e-8)) / 8, atol=2e-4)
    bands = mel_bands()
    assert abs(int(found[30].argmax()) - int(bands[:, round(440 / 15.625)].argmax())) <= 1


def test_bands_cover_the_spectrum_once():
    bands = mel_bands()
    assert bands.shape == (80, 513)
    assert (bands.max(1) > 0).all()
    first, last = bands[0].argmax() + 1, bands[-1].argmax()
    np.testing.assert_allclose(bands.sum(0)[first:last], 1, atol=1e-5)  # neighbours cross at a half


def test_silence_and_other_input():
    np.testing.assert_array_equal(log_mel(np.zeros((1, 16000), np.int16)), 0)
    for wrong in (np.zeros((1, 15999), np.int16), np.zeros((1, 16000)), np.zeros(16000, np.int16)):
        with pytest.raises(InputError, match="clips are"):
            log_mel(wrong)


def prepare(root, *, longest=16000, changes=None):
    """A tiny set as TFDS writes speech commands: the same records, whose description then says that they are audio."""
    import tensorflow_datasets as tfds

    clips = {
        part: [RNG.integers(-3000, 3000, size, np.int16) for size in (16000, 9000, longest, 300, 16000, 12000)]
        for part in ("train", "test")
    }

    class Words(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "words"
        pkg_dir_path = root
        VERSION = tfds.core.Version("0.0.3")

        def _info(self):
            described = {
                "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
                "label": tfds.features.ClassLabel(names=["down", "go", "left"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(described))

        def _split_generators(self, manager):
            return {part: self._examples(part) for part in clips}

        def _examples(self, part):
            for row, clip in enumerate(clips[part]):
                yield row, {"audio": clip, "label": row % 3}

        def _generate_examples(self):
            return iter(())

    Words(data_dir=root, file_format="array_record").download_and_prepare()
    directory = root / "words" / "0.0.3"
    file = directory / "features.json"
    described = json.loads(file.read_text())
    described["featuresDict"]["features"]["audio"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {
            "shape": {"dimensions": ["-1"]}, "dtype": "int16", "sampleRate": "16000", "encoding": "none", **(changes or {}),
        },
    }  # fmt: skip
    file.write_text(json.dumps(described))
    return clips, directory


def test_a_prepared_set_of_audio_is_read_without_tensorflow(tmp_path):
    clips, directory = prepare(tmp_path)
    words = load("words", data_dir=tmp_path)
    assert (words.shape, words.num_classes, words.class_names) == ((125, 80, 1), 3, ("down", "go", "left"))
    assert words.source == "tfds:words/0.0.3, log-mel spectrograms"
    for split, part in ((words.train, "train"), (words.test, "test")):
        padded = np.stack([np.pad(clip, (0, 16000 - len(clip))) for clip in clips[part]])
        expected = np.round(255 * log_mel(padded)).astype(np.uint8)
        order = lambda rows, labels: sorted(
            (row.tobytes(), int(label)) for row, label in zip(rows, labels, strict=True)
        )
        assert order(split.images, split.labels) == order(expected, np.arange(6) % 3)
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(MissingDataError, match=r"stored as tfrecord.*download_and_prepare"):
        load("words", data_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("longest", "changes", "message"),
    [
        (16001, {}, "16001 samples; at most 16000"),
        (16000, {"sampleRate": "44100"}, "int16 at 44100 Hz"),
        (16000, {"shape": {"dimensions": ["-1", "2"]}}, "one channel"),
    ],
)
def test_audio_of_another_kind(tmp_path, longest, changes, message):
    prepare(tmp_path, longest=longest, changes=changes)
    with pytest.raises(InputError, match=message):
        load("words", data_dir=tmp_path)
