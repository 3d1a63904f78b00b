"""The bundled sequences: the same every time, balanced, with the courses of pitch that their names say."""

import numpy as np

from dfke_jax.data import TONES, load


def test_tones_are_reproducible_balanced_and_in_the_box():
    first, again = load("tones"), load("tones")
    assert first.shape == (32, 24, 1)
    assert first.class_names == TONES
    assert (len(first.train), len(first.test)) == (3000, 1000)
    assert first.train.images.dtype == np.uint8
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(np.bincount(first.train.labels), 300)
    np.testing.assert_array_equal(np.bincount(first.test.labels), 100)
    assert not np.array_equal(first.train.images[:1000], first.test.images)


def test_pitch_runs_as_the_class_says():
    train = load("tones").train
    pitch = train.images[..., 0].argmax(2).astype(float)
    early, late = pitch[:, 10:13].mean(1), pitch[:, 16:19].mean(1)
    climb = {name: np.median((late - early)[train.labels == k]) for k, name in enumerate(TONES)}
    assert climb["rising"] > 1
    assert climb["falling"] < -1
    assert abs(climb["steady"]) < 0.5
    loud = train.images[..., 0].max(2) > 100
    sounding = {name: loud[train.labels == k].mean() for k, name in enumerate(TONES)}
    assert sounding["pulses"] < 0.75 * sounding["steady"]
