"""Spoken words as images: prepared audio is read without TensorFlow and becomes log-mel
spectrograms.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError, MissingDataError

RATE = 16_000
"""Samples a second, and samples of a clip."""

FRAMES, BANDS = 125, 80
_HOP, _WINDOW, _TRANSFORM = 128, 512, 1024
_RANGE = 80.0  # dB between 0 and 1
_CLIPS = 256  # transformed at a time


class AudioFeatures(NamedTuple):
    """Names of the audio and of the label among a set's features, and the label's classes."""

    audio: str
    label: str
    names: tuple[str, ...]


def log_mel(audio: Any) -> np.ndarray:
    """Log-mel spectrograms of clips of up to a second: (125, 80) in [0, 1], time by frequency.

    A clip x, divided by 32,768 and followed by zeros up to 16,000 samples, is cut into 125 frames
    of 512 samples, frame t around sample 128·(t + ½), with zeros beyond the ends. With the periodic
    Hann window w, padded to 1,024 samples,

        P[t, k] = |Σ_n w[n] x_t[n] exp(−2πi·kn/1024)|²,   M[t, m] = Σ_k F[m, k] P[t, k],
        y[t, m] = 1 + (10/80) log₁₀ max(M[t, m]/max M, 10⁻⁸)

    with F from `mel_bands`: the loudest place of every clip is 1, and what is 80 dB below it, 0.
    Silence is 0 everywhere.

    Args:
      audio: (N, 16000) integers of 16 bits.

    Returns:
      (N, 125, 80) float32.

    Raises:
      InputError: for another shape or type.
    """
    from scipy.fft import rfft  # of float32 in float32

    audio = np.asarray(audio)
    if audio.ndim != 2 or audio.shape[1] != RATE or audio.dtype != np.int16:
        raise InputError(
            f"clips are (N, {RATE}) of int16, got {audio.dtype} of shape {audio.shape}"
        )
    found = np.empty((len(audio), FRAMES, BANDS), np.float32)
    edge = (_WINDOW - _HOP) // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW, dtype=np.float32) / _WINDOW)
    for start in range(0, len(audio), _CLIPS):
        padded = np.pad(
            audio[start : start + _CLIPS].astype(np.float32) / 32_768, ((0, 0), (edge, edge))
        )
        frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::_HOP]
        power = np.square(np.abs(np.asarray(rfft(frames * window, _TRANSFORM))))
        energy = power @ mel_bands().T
        loudest = energy.max((1, 2), keepdims=True)
        share = energy / np.where(loudest > 0, loudest, 1)
        found[start : start + _CLIPS] = 1 + 10 / _RANGE * np.log10(
            np.maximum(share, 10 ** (-_RANGE / 10))
        )
    return np.clip(found, 0, 1)  # rounding at the lower end


@functools.cache
def mel_bands() -> np.ndarray:
    """(80, 513): triangles between 0 and 8 kHz, equally wide in mel = 2595 log₁₀(1 + f/700), of
    height 1.
    """
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
    edges = np.linspace(0, mel(RATE / 2), BANDS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    low, middle, high = (edges[i : i + BANDS, None] for i in range(3))
    bins = np.arange(_TRANSFORM // 2 + 1) * RATE / _TRANSFORM
    return np.maximum(
        0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    ).astype(np.float32)


def audio_features(directory: Path) -> AudioFeatures | None:
    """What a prepared TFDS directory says of its audio and label; None if it has no audio.

    Raises:
      InputError: for audio of another kind than 16,000 samples a second of 16 bits, or without
        exactly one label.
    """
    features = (
        json.loads((directory / "features.json").read_text())
        .get("featuresDict", {})
        .get("features", {})
    )
    kinds = {
        name: feature.get("pythonClassName", "").rsplit(".", 1)[-1]
        for name, feature in features.items()
    }
    sounds = [name for name, kind in kinds.items() if kind == "Audio"]
    if not sounds:
        return None
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(sounds) != 1 or len(labels) != 1:
        raise InputError(
            f"{directory} needs one feature of audio and one label, its features are {kinds}"
        )
    about = features[sounds[0]].get("audio", {})
    rate, dtype = int(about.get("sampleRate", RATE)), about.get("dtype")
    if (
        (rate, dtype) != (RATE, "int16")
        or about.get("lazyDecode")
        or len(about["shape"].get("dimensions", [])) != 1
    ):
        raise InputError(
            f"audio of {directory} is {dtype} at {rate} Hz, shape {about.get('shape')}; one "
            f"channel of int16 at {RATE} Hz is read"
        )
    file = directory / f"{labels[0]}.labels.txt"
    count = int(features[labels[0]]["classLabel"]["numClasses"])
    names = file.read_text().split() if file.is_file() else range(count)
    return AudioFeatures(sounds[0], labels[0], tuple(map(str, names)))


def splits(directory: Path) -> tuple[str, ...]:
    """Names of the prepared splits."""
    return tuple(split["name"] for split in _described(directory)["splits"])


def read_audio(
    directory: Path, split: str, features: AudioFeatures
) -> tuple[np.ndarray, np.ndarray]:
    """Spectrograms (N, 125, 80, 1), uint8, and labels (N,) of a split of a prepared TFDS directory,
    in the order of its files.

    Raises:
      MissingDataError: for files of another format than array_record.
      InputError: a clip of more than a second.

    Deviation: `log_mel` rounded to 256 levels, of 0.3 dB.
    """
    if _described(directory).get("fileFormat") != "array_record":
        raise MissingDataError(
            f"{directory} is stored as {_described(directory).get('fileFormat')}, not as "
            "array_record"
        )
    from array_record.python import array_record_data_source
    from tensorflow_datasets.proto import tf_example_pb2

    paths = sorted(map(str, directory.glob(f"*-{split}.array_record-*")))
    images, labels = [], []
    with array_record_data_source.ArrayRecordDataSource(paths) as source:
        for start in range(0, len(source), _CLIPS):
            records = source.__getitems__(range(start, min(start + _CLIPS, len(source))))
            clips = np.zeros((len(records), RATE), np.int16)
            for clip, record in zip(clips, records, strict=True):
                example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
                values = example.FromString(record).features.feature
                samples = values[features.audio].int64_list.value
                if len(samples) > RATE:
                    raise InputError(
                        f"a clip of {directory} has {len(samples)} samples; at most {RATE} are read"
                    )
                clip[: len(samples)] = samples
                labels.append(values[features.label].int64_list.value[0])
            images.append(np.round(255 * log_mel(clips)).astype(np.uint8))
    return np.concatenate(images)[..., None], np.asarray(labels, np.int32)


def _described(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "dataset_info.json").read_text())


__all__ = [
    "BANDS",
    "FRAMES",
    "RATE",
    "AudioFeatures",
    "audio_features",
    "log_mel",
    "mel_bands",
    "read_audio",
    "splits",
]
