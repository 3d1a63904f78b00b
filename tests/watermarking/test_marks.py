"""What every mark with an exact test promises, over a table of them.

A new mark adds one line to `MARKS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_files import example
from jax.tree_util import Partial
from scipy.stats import binom

from dfke_jax import core, data
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking import (
    MarginSettings,
    commit_mark,
    margin_mark,
    margin_training,
    uchida_mark,
    uchida_penalty,
    verify_margin,
    verify_uchida,
)
from dfke_jax.watermarking.commitments import COMMITTED, NOT_COMMITTED

STEPS, CLASSES, SHAPE = 200, 10, (8, 8, 1)
KEY = jax.random.key(61)
DIGITS = data.load("digits")
IMAGES, LABELS = jnp.asarray(DIGITS.train.images), jnp.asarray(DIGITS.train.labels)
BLANK = Classifier.create(MLP(CLASSES, (64,)), KEY, SHAPE)
HELD, HELD_LABELS = DIGITS.test.images, DIGITS.test.labels
"""The first hundred are for marks of real images, the others to measure accuracy on."""


class Mark(NamedTuple):
    """The three parts of a mark.

    Attributes:
      draw: key -> mark. embed: mark -> `Method` over `Training`.
      verify: (suspect, mark, commitment=) -> evidence.
    """

    draw: Callable[[Any], Any]
    embed: Callable[[Any], core.Method]
    verify: Callable[..., Any]


def plain(**options):
    rule = optimiser("adam", 5e-3, STEPS)
    return training(BLANK, IMAGES, LABELS, loss=Partial(cross_entropy), optimizer=rule, batch_size=64, **options)


def margin_based():
    margin = MarginSettings(steps=0, points_per_batch=20, weight=1.0)
    embed = lambda mark: margin_training(
        BLANK, IMAGES, LABELS, mark, margin, steps=STEPS, batch_size=64, learning_rate=5e-3
    )
    return Mark(
        lambda key: margin_mark(key, jnp.asarray(HELD[:100]), jnp.asarray(HELD_LABELS[:100]), CLASSES, 20),
        embed,
        lambda suspect, mark, **options: verify_margin(suspect, mark, CLASSES, **options),
    )


def noise_labels():
    of = example("howto/noise_labels")
    return Mark(
        lambda key: of.noise_mark(key, SHAPE, CLASSES),
        lambda mark: of.embedding(BLANK, IMAGES, LABELS, mark, steps=STEPS),
        lambda suspect, mark, **options: of.verify_noise(suspect, mark, CLASSES, **options),
    )


MARKS = {
    "uchida": Mark(
        lambda key: uchida_mark(key, BLANK, 32), lambda mark: plain(penalty=uchida_penalty(mark, 0.05)), verify_uchida
    ),
    "margin-based": margin_based(),
    # the example of docs/howto
    "noise labels": noise_labels(),
}
every_mark = pytest.mark.parametrize("name", MARKS)


def network(method):
    return trained(BLANK, core.run(method, jax.random.key(62), STEPS, progress=None).state)


@functools.cache
def innocent():
    return network(plain())


@functools.cache
def marked(name):
    mark = MARKS[name].draw(jax.random.key(63))
    return network(MARKS[name].embed(mark)), mark


@every_mark
def test_a_marked_network_is_found_and_does_its_task(name):
    found, mark = marked(name)
    assert MARKS[name].verify(found, mark).p_value < 1e-3
    accuracy = lambda classifier: (classifier.predict(HELD[100:]).argmax(1) == HELD_LABELS[100:]).mean()
    assert accuracy(found) > accuracy(innocent()) - 0.1 > 0.75


@every_mark
def test_p_values_of_marks_that_are_not_there_are_at_least_uniform(name):
    """Of 100 marks drawn afresh, at most about α are found in a network that has none of them."""
    verify, draw = MARKS[name].verify, MARKS[name].draw
    values = np.array([verify(innocent(), draw(jax.random.fold_in(KEY, i))).p_value for i in range(100)])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (values <= level).sum() <= binom.ppf(1 - 1e-4, 100, level), level
    assert (values < 0.5).any(), "a test that can never find anything"


@every_mark
def test_another_mark_is_not_the_one_embedded(name):
    found, _ = marked(name)
    assert MARKS[name].verify(found, MARKS[name].draw(jax.random.key(64))).p_value > 1e-3


@every_mark
def test_the_key_decides_the_mark_and_the_commitment_holds_it(name):
    found, mark = marked(name)
    of = MARKS[name]
    commitment, other = commit_mark(mark), of.draw(jax.random.key(64))
    assert commit_mark(of.draw(jax.random.key(63)), commitment.nonce) == commitment
    assert COMMITTED in of.verify(found, mark, commitment=commitment).assumes
    assert NOT_COMMITTED in of.verify(found, mark).assumes
    with pytest.raises(core.InputError, match="does not open the commitment"):
        of.verify(found, other, commitment=commitment)
