"""Knowledge distillation on any transfer set, and the sets that nobody synthesised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.data.augment import identity, shift
from dfke_jax.distillation import (
    balanced,
    balanced_by_moving,
    cross_entropy_training,
    few_shot,
    knowledge_distillation,
    unbalanced,
)
from dfke_jax.distillation.response import response_loss, table_of_answers
from dfke_jax.nn.losses import cross_entropy, response_kl
from dfke_jax.nn.training import trained

KEY = jax.random.key(13)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(14), (24, 6, 6, 1))


@pytest.mark.slow
def test_a_table_of_answers_equals_asking_every_time(teacher, student, images, close):
    options = {"temperature": 4.0, "steps": 4, "batch_size": 8}
    table = core.run(knowledge_distillation(student, teacher, images, **options), KEY, 4, chunk=4)
    live = core.run(knowledge_distillation(student, teacher, images, augment=identity(), **options), KEY, 4, chunk=4)
    np.testing.assert_allclose(table.metrics["loss"], live.metrics["loss"], rtol=1e-4)
    close(table.state.variables, live.state.variables, atol=1e-4)
    np.testing.assert_allclose(table_of_answers(teacher, images, 7), teacher(images), atol=1e-5)


def test_a_student_comes_to_agree(teacher, student, images):
    method = knowledge_distillation(
        student, teacher, images, temperature=2.0, steps=150, batch_size=24, learning_rate=0.02
    )
    result = core.run(method, KEY, 150, chunk=150)
    assert result.metrics["loss"][-10:].mean() < 0.3 * result.metrics["loss"][0]
    agreement = trained(student, result.state).predict(images).argmax(1) == teacher.predict(images).argmax(1)
    assert agreement.mean() > 0.8


@pytest.mark.slow
def test_the_loss_and_its_mixture_with_labels(teacher, student, images):
    labels = jnp.arange(24) % 3
    plain = knowledge_distillation(student, teacher, images, temperature=3.0, batch_size=5)
    mixed = knowledge_distillation(
        student, teacher, images, temperature=3.0, batch_size=5, labels=labels, label_weight=0.7
    )
    state = plain.init(KEY)
    rows = jax.random.randint(jax.random.split(KEY, 3)[0], (5,), 0, 24)
    logits, _ = student.module.apply(
        state.variables, images[rows], train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    kl = response_kl(logits, teacher(images[rows]), 3.0).mean()
    assert plain.step(KEY, state)[1]["loss"] == pytest.approx(float(kl), rel=1e-4)
    expected = kl + 0.7 * cross_entropy(logits, labels[rows]).mean()
    assert mixed.step(KEY, state)[1]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_learning_from_labels(student, real):
    images, labels = real
    method = cross_entropy_training(student, jnp.asarray(images), jnp.asarray(labels), steps=80, batch_size=30,
                                    learning_rate=0.02)  # fmt: skip
    result = core.run(method, KEY, 80, chunk=80)
    assert (trained(student, result.state).predict(images).argmax(1) == labels).mean() > 0.9


def test_response_refusals(teacher, student, images):
    labels = jnp.arange(24) % 3
    for options in ({"labels": labels}, {"label_weight": 0.5}, {"labels": labels, "label_weight": -1.0}):
        with pytest.raises(core.InputError, match="labels and label_weight > 0 go together"):
            knowledge_distillation(student, teacher, images, **options)
    with pytest.raises(core.InputError, match="without augmentation only"):
        knowledge_distillation(student, teacher, images, labels=labels, label_weight=0.5, augment=shift(1))
    for temperature in (0.0, -2.0):
        with pytest.raises(core.InputError, match="temperature must be positive"):
            knowledge_distillation(student, teacher, images, temperature=temperature)
        with pytest.raises(core.InputError, match="temperature must be positive"):
            response_loss(temperature)
    with pytest.raises(core.UnknownNameError, match="unknown optimiser 'adaam'; nearest: adam"):
        knowledge_distillation(student, teacher, images, optimizer="adaam")
    with pytest.raises(core.InputError, match="steps must be at least 1, got 0"):
        core.run(knowledge_distillation(student, teacher, images), KEY, 0)
    bad = {
        "outside": (images + 1, r"images must lie in \[0.0, 1.0\]"),
        "nan": (images.at[3].set(jnp.nan), "NaN or infinity in 1 of 24 rows"),
        "size": (images[:, :5], r"6×6×1, got shape \(24, 5, 6, 1\)"),
        "channels": (images.repeat(3, 3), r"6×6×1, got shape \(24, 6, 6, 3\)"),
        "empty": (images[:0], "images are empty"),
    }
    for spoilt, message in bad.values():
        with pytest.raises(core.InputError, match=message):
            knowledge_distillation(student, teacher, spoilt)


def test_balanced_by_what_the_teacher_sees(teacher):
    images = np.random.default_rng(1).uniform(size=(200, 6, 6, 1)).astype(np.float32)
    answers = teacher.predict(images).argmax(1)
    present = np.unique(answers)
    assert len(present) >= 2
    chosen, counts = balanced(images, teacher, 50, seed=3)
    np.testing.assert_array_equal(counts, np.bincount(answers, minlength=3))
    shares = np.bincount(teacher.predict(chosen).argmax(1), minlength=3)[present]
    assert chosen.shape == (50, 6, 6, 1)
    assert shares.max() - shares.min() <= 1, "to a sample"
    known = {image.tobytes() for image in images}
    assert all(image.tobytes() in known for image in chosen)
    np.testing.assert_array_equal(chosen, balanced(images, teacher, 50, seed=3)[0])
    assert not np.array_equal(chosen, balanced(images, teacher, 50, seed=4)[0])
    rare = present[np.argmin(counts[present])]
    repeated, _ = balanced(images, teacher, 3 * len(present) * (counts[rare] + 1), seed=0)
    of_rare = repeated[teacher.predict(repeated).argmax(1) == rare]
    assert len({image.tobytes() for image in of_rare}) == counts[rare], "every row of a rare class serves"


def test_one_class_cannot_be_balanced(teacher):
    images = np.repeat(np.random.default_rng(2).uniform(size=(1, 6, 6, 1)), 8, 0).astype(np.float32)
    label = int(teacher.predict(images).argmax(1)[0])
    with pytest.raises(core.InputError, match=f"the teacher sees class {label} in all 8 images"):
        balanced(images, teacher, 10)


def test_unbalanced_rows():
    images = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    assert sorted(unbalanced(images, 10).ravel()) == list(range(10))
    assert len(set(unbalanced(images, 6).ravel())) == 6, "without replacement"
    assert unbalanced(images, 25).shape == (25, 1, 1, 1)
    np.testing.assert_array_equal(unbalanced(images, 6, 1), unbalanced(images, 6, 1))
    assert not np.array_equal(unbalanced(images, 6, 1), unbalanced(images, 6, 2))


def test_labels_one_step_with_the_options_given(student, images):
    """The loss of a batch is the cross-entropy of the images as they are augmented, at the size asked for."""
    labels = jnp.zeros(24, int).at[:5].set(2)  # a class may be missing
    negative = Partial(lambda key, images: 1 - images)
    method = cross_entropy_training(
        student, images, labels, steps=9, batch_size=7, learning_rate=0.02, augment=negative
    )
    state = method.init(KEY)
    rows = jax.random.randint(jax.random.split(KEY, 3)[0], (7,), 0, 24)
    logits, _ = student.module.apply(state.variables, 1 - images[rows], train=True, mutable=["batch_stats"])
    found = jax.jit(method.step)(KEY, state)[1]["loss"]
    assert found == pytest.approx(float(cross_entropy(logits, labels[rows]).mean()), rel=1e-4)


def test_temperatures_below_one_are_allowed():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 3)), jnp.float32)
    np.testing.assert_allclose(response_loss(0.5)(logits[0], logits[1]), response_kl(logits[0], logits[1], 0.5))


def test_two_classes_of_three_can_be_balanced(teacher):
    """The last class has no image: it is counted as none and stays empty."""
    images = np.random.default_rng(4).uniform(size=(200, 6, 6, 1)).astype(np.float32)
    answers = teacher.predict(images).argmax(1)
    assert set(answers) == {0, 1, 2}
    chosen, counts = balanced(images[answers < 2], teacher, 9)
    np.testing.assert_array_equal(counts, np.bincount(answers[answers < 2], minlength=3))
    assert counts.shape == (3,)
    assert counts[2] == 0
    np.testing.assert_array_equal(np.bincount(teacher.predict(chosen).argmax(1), minlength=3), [5, 4, 0])


def test_balanced_by_moving_images(teacher):
    """Of images that the teacher puts into two classes the third is made; nothing else is touched."""
    images = np.random.default_rng(5).uniform(size=(120, 6, 6, 1)).astype(np.float32)
    answers = teacher.predict(images).argmax(1)
    images = np.concatenate([images[answers == 0][:20], images[answers == 1][:3]])
    made = balanced_by_moving(images, teacher, 20, seed=1, steps=60, step_size=0.03)
    np.testing.assert_array_equal(made.counts, [20, 3, 0])
    np.testing.assert_array_equal(np.bincount(teacher.predict(made.images).argmax(1), minlength=3), [7, 7, 6])
    assert (made.moved, made.asked) == (4 + 6, 23 + (4 + 6) * 61)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    known = {image.tobytes() for image in images}
    assert [image.tobytes() in known for image in made.images] == [True] * 10 + [False] * 10
    near = [np.abs(images - image).max((1, 2, 3)).min() for image in made.images]
    assert 0 < max(near) <= 60 * 0.03 + 1e-6


def test_one_step_of_moving_is_a_signed_gradient(teacher):
    made, start, image = None, 0, np.zeros(0)
    for seed in range(40):  # an image that one small step takes across
        image = np.random.default_rng(seed).uniform(0.3, 0.7, (1, 6, 6, 1)).astype(np.float32)
        start = int(teacher.predict(image).argmax(1)[0])
        try:
            made = balanced_by_moving(image, teacher, 3, steps=1, step_size=0.2)
            break
        except core.InputError:
            continue
    assert made is not None
    for label in {0, 1, 2} - {start}:
        slope = jax.grad(lambda x, label=label: cross_entropy(teacher(x), jnp.array([label])).sum())(image)
        np.testing.assert_allclose(made.images[label], image[0] - 0.2 * np.sign(slope[0]), atol=1e-6)


def test_moving_refuses(teacher):
    images = np.random.default_rng(7).uniform(size=(9, 6, 6, 1)).astype(np.float32)
    for wrong in ({"steps": 0}, {"step_size": 0.0}):
        with pytest.raises(core.InputError, match="steps must be at least 1, step_size positive"):
            balanced_by_moving(images, teacher, 9, **wrong)
    with pytest.raises(core.InputError, match="count at least the number of classes"):
        balanced_by_moving(images, teacher, 2)
    one = images[teacher.predict(images).argmax(1) == 0][:1]
    with pytest.raises(core.InputError, match="no image could be moved to class"):
        balanced_by_moving(one, teacher, 3, steps=1, step_size=1e-6)


def test_a_few_of_every_label():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 5)
    rows = few_shot(labels, 10, seed=2)
    assert len(set(rows)) == 10
    np.testing.assert_array_equal(np.bincount(labels[rows]), [4, 3, 3])
    assert set(few_shot(labels, 10, 3)) != set(rows)
    for count in (2, 13):
        with pytest.raises(core.InputError, match="between 3 and 12 rows"):
            few_shot(labels, count)
