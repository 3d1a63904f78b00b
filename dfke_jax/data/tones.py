"""A bundled set of sequences: ten kinds of tones, as spectrograms. Drawn from one seed by a
formula.
"""

import numpy as np

from dfke_jax.data.dataset import Dataset, Split

TONES = (
    "steady",
    "rising",
    "falling",
    "up and down",
    "down and up",
    "vibrato",
    "alternating",
    "pulses",
    "two voices",
    "overtone",
)
"""The classes, in order."""

TIME, FREQUENCY = 32, 24
TRAIN_ROWS, TEST_ROWS = 3000, 1000
_SEED = 2021


def tones() -> Dataset:
    """3,000 training and 1,000 test spectrograms (32, 24, 1) of ten kinds of tones, in equal
    numbers; uint8.

    A tone is a ridge of Gaussian profile along a course of pitch f(t). Pitch, range, onset,
    duration, loudness and phase are drawn for each, and noise is added, so that no single moment
    gives the class away. Made for sequence networks and tests; nobody else reports figures on it.
    """
    rng = np.random.Generator(np.random.Philox(_SEED))
    train, test = (_split(rng, rows) for rows in (TRAIN_ROWS, TEST_ROWS))
    return Dataset(
        "tones", train, test, len(TONES), TONES, "synthetic tones of dfke_jax, version 1"
    )


def _split(rng: np.random.Generator, rows: int) -> Split:
    labels = np.arange(rows) % len(TONES)
    uniform = lambda low, high: low + (high - low) * rng.random((rows, 1))
    time = np.arange(TIME)[None]
    onset, length = uniform(0, 8), uniform(18, 24)
    along = (time - onset) / length  # (N, T), 0 to 1 while it sounds
    pitch, width, phase = uniform(8, 15), uniform(4, 7), uniform(0, 1)
    wave = np.sin(2 * np.pi * (3 * along + phase))
    arch = width * (1 - np.abs(2 * along - 1))
    # By kind: pitch over time, loudness over time, distance of a second voice, its loudness.
    still, full = 0 * along, 1 + 0 * along
    switched = np.sign(np.sin(2 * np.pi * (3 * along + phase)))
    courses = [still, width * (2 * along - 1), width * (1 - 2 * along), arch - width / 2,
               width / 2 - arch, 1.5 * wave, width / 2 * switched, still, still, still]  # fmt: skip
    loudness = [full] * 7 + [(switched + 1) / 2, full, full]
    gaps = np.array([0.0] * 8 + [4.0, 8.0])[labels][:, None]
    second = np.array([0.0] * 8 + [1.0, 0.6])[labels][:, None]
    pick = lambda kinds: np.stack(kinds, 1)[np.arange(rows), labels]
    centre, loud = (
        pitch + pick(courses),
        uniform(0.5, 0.9) * pick(loudness) * ((along >= 0) & (along <= 1)),
    )
    bins = np.arange(FREQUENCY)[None, None]
    ridge = lambda middle: np.exp(-0.5 * np.square((bins - middle[:, :, None]) / 0.8))
    sound = loud[:, :, None] * np.maximum(ridge(centre), second[:, :, None] * ridge(centre + gaps))
    noise = 0.25 * rng.random((rows, TIME, FREQUENCY)) * (0.4 + rng.random((rows, 1, FREQUENCY)))
    images = np.round(255 * np.clip(sound + noise, 0, 1)).astype(np.uint8)[..., None]
    order = rng.permutation(rows)
    return Split(images[order], labels[order])


__all__ = ["TONES", "tones"]
