"""Noise optimisation against loops written out in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError, device_mesh, replicate
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser
from dfke_jax.synthesis import optimise_noise
from dfke_jax.synthesis.noise import _couples, _grouping

KEY = jax.random.key(5)
SHAPE = (4, 3, 3, 1)
RNG = np.random.default_rng(0)
START = RNG.uniform(size=SHAPE).astype(np.float32)
GOAL = RNG.uniform(-0.5, 1.5, size=SHAPE).astype(np.float32)
CURVE = np.array([0.5, 1.0, 3.0, 10.0], np.float32).reshape(4, 1, 1, 1)


def bowl(curve, goal, key, images):
    """Σ a(x − g)² of every image, and a confidence that rises as it falls."""
    loss = (curve * jnp.square(images - goal)).sum((1, 2, 3))
    return loss, 1 / (1 + loss)


BOWL = Partial(bowl, CURVE, GOAL)


class Adam:
    """Kingma and Ba 2015, algorithm 1, in float64."""

    def __init__(self, shape, rate):
        self.rate, self.count = rate, 0
        self.first, self.second = np.zeros(shape), np.zeros(shape)

    def __call__(self, slope):
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return -self.rate * first / (np.sqrt(second) + 1e-8)


def naive_loss(x):
    return (CURVE * (x - GOAL) ** 2).sum((1, 2, 3))


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_clipped_adam(rate):
    x, adam = START.astype(np.float64), Adam(SHAPE, rate)
    for _ in range(12):
        before = naive_loss(x)
        x = np.clip(x + adam(2 * CURVE * (x - GOAL)), 0, 1)
    made = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=12, optimizer=optax.adam(rate))
    np.testing.assert_allclose(made.images, x, atol=2e-5)
    np.testing.assert_allclose(made.loss, before, rtol=1e-4)
    np.testing.assert_allclose(made.confidence, 1 / (1 + before), rtol=1e-4)
    np.testing.assert_array_equal(made.steps, [12] * 4)
    assert ((made.images == 0) | (made.images == 1)).any() or rate == 0.01, "the box was reached"


def test_against_a_small_teacher():
    teacher = Classifier.create(MLP(3, (6,)), jax.random.key(1), (3, 3, 1))
    targets = np.array([[0.7, 0.2, 0.1], [0, 1, 0], [0.3, 0.3, 0.4], [0.9, 0.05, 0.05]], np.float32)
    tau = 4.0

    def objective(key, images):
        loss = soft_cross_entropy(teacher(images), jnp.asarray(targets), tau)
        return loss, jnp.zeros_like(loss)

    made = optimise_noise(KEY, objective, jnp.asarray(START), steps=8, optimizer=optax.adam(0.05))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), teacher.variables["params"])
    w1, b1 = params["dense1"]["kernel"], params["dense1"]["bias"]
    w2, b2 = params["head"]["kernel"], params["head"]["bias"]
    x, adam = START.astype(np.float64).reshape(4, -1), Adam((4, 9), 0.05)
    for _ in range(8):
        hidden = x @ w1 + b1
        logits = np.maximum(hidden, 0) @ w2 + b2
        p = np.exp(logits / tau)
        p /= p.sum(1, keepdims=True)
        slope = ((p - targets) / tau) @ w2.T * (hidden > 0) @ w1.T  # of Σ_b CE_b
        x = np.clip(x + adam(slope), 0, 1)
    np.testing.assert_allclose(made.images.reshape(4, -1), x, atol=1e-4)


def test_a_sample_does_not_depend_on_the_others():
    def run(rows):
        objective = Partial(bowl, CURVE[rows], GOAL[rows])
        return optimise_noise(KEY, objective, jnp.asarray(START[rows]), steps=9, optimizer=optax.adam(0.1)).images

    whole = run(np.arange(4))
    for row in range(4):
        np.testing.assert_allclose(run(np.array([row]))[0], whole[row], atol=1e-6)
    np.testing.assert_allclose(run(np.array([2, 0]))[1], whole[0], atol=1e-6)


def test_the_sum_is_differentiated_not_the_mean():
    made = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=1, optimizer=optax.sgd(0.01), parametrisation="free")
    np.testing.assert_allclose(made.images, START - 0.01 * 2 * CURVE * (START - GOAL), atol=1e-6)


def stopped_loop(confidence_of, threshold, steps, rate):
    x, best_loss = START.astype(np.float64), np.zeros(4)
    adams = [Adam(SHAPE[1:], rate) for _ in range(4)]
    active, taken, last = np.ones(4, bool), np.zeros(4, int), np.zeros(4)
    for step in range(steps):
        confidence = confidence_of(x, step)
        for b in range(4):
            if not active[b]:
                continue
            last[b], best_loss[b] = confidence[b], naive_loss(x)[b]
            if confidence[b] >= threshold[b]:
                active[b] = False
                continue
            # The count of Adam is one for the batch.
            adams[b].count = step
            x[b] = np.clip(x[b] + adams[b](2 * CURVE[b] * (x[b] - GOAL[b])), 0, 1)
            taken[b] += 1
    return x, taken, last, best_loss, adams


THRESHOLD = np.array([0.45, 0.2, 1.1, 0.0], np.float32)


def test_stopping_freezes_image_and_optimiser_state_at_the_right_step():
    x, taken, last, loss, adams = stopped_loop(lambda x, step: 1 / (1 + naive_loss(x)), THRESHOLD, 30, 0.03)
    made = optimise_noise(
        KEY, BOWL, jnp.asarray(START), steps=30, optimizer=optax.adam(0.03), stop_at=jnp.asarray(THRESHOLD)
    )
    assert 0 < taken[0] < 30
    assert 0 < taken[1] < 30
    assert taken[2] == 30
    assert taken[3] == 0
    np.testing.assert_array_equal(made.steps, taken)
    np.testing.assert_allclose(made.images, x, atol=2e-5)
    np.testing.assert_allclose(made.confidence, last, rtol=1e-4)
    np.testing.assert_allclose(made.loss, loss, rtol=1e-4)
    np.testing.assert_array_equal(made.images[3], START[3])
    moments = made.optimizer_state[0]
    np.testing.assert_allclose(moments.mu, np.stack([adam.first for adam in adams]), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moments.nu, np.stack([adam.second for adam in adams]), rtol=1e-3, atol=1e-5)
    assert (made.optimizer_state[0].mu[3] == 0).all()


def test_stopping_is_for_good_when_the_confidence_is_random():
    def objective(key, images):
        loss, _ = BOWL(key, images)
        return loss, jax.random.uniform(key, (4,))

    draw = lambda x, step: np.asarray(jax.random.uniform(jax.random.fold_in(KEY, step), (4,)))
    threshold = np.array([0.5, 0.8, 1.1, 0.0], np.float32)
    x, taken, last, _, _ = stopped_loop(draw, threshold, 15, 0.05)
    assert any(draw(x, step)[0] < 0.5 for step in range(int(taken[0]) + 1, 15)), "it would have gone on"
    made = optimise_noise(
        KEY, objective, jnp.asarray(START), steps=15, optimizer=optax.adam(0.05), stop_at=jnp.asarray(threshold)
    )
    np.testing.assert_array_equal(made.steps, taken)
    np.testing.assert_allclose(made.images, x, atol=2e-5)
    np.testing.assert_allclose(made.confidence, last, rtol=1e-6)


def test_the_best_so_far_is_kept():
    rate, steps = 0.09, 11  # 2·10·0.09 > 1: the steepest image leaps from side to side
    x = START.astype(np.float64)
    best, least, at = x.copy(), np.full(4, np.inf), np.zeros(4, int)
    for step in range(steps):
        loss = naive_loss(x) + 5 * (step % 3)
        better = loss < least
        best[better], least[better], at[better] = x[better], loss[better], step
        x = x - rate * 2 * CURVE * (x - GOAL)
    assert len(set(at)) > 1 or at[0] < steps - 1

    def objective(key, images):
        # The step is known from its key: three constants in turn make the last iterate not the best one.
        steps_keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(KEY, i)))(jnp.arange(steps))
        step = (steps_keys == jax.random.key_data(key)[None]).all(1).argmax()
        loss, confidence = BOWL(key, images)
        return loss + 5.0 * (step % 3), confidence

    made = optimise_noise(
        KEY, objective, jnp.asarray(START), steps=steps, optimizer=optax.sgd(rate), parametrisation="free", keep="best"
    )
    np.testing.assert_allclose(made.images, best, atol=1e-4)
    np.testing.assert_allclose(made.loss, least, rtol=1e-4)
    np.testing.assert_allclose(made.confidence, 1 / (1 + naive_loss(best)), rtol=1e-4)


def test_sigmoid_parametrisation():
    low, high = -1.0, 2.0
    start = START * 3 - 1
    unit = np.clip((start.astype(np.float64) - low) / (high - low), 1e-4, 1 - 1e-4)
    u = np.log(unit / (1 - unit))
    for _ in range(7):
        s = 1 / (1 + np.exp(-u))
        x = low + (high - low) * s
        u = u - 0.02 * 2 * CURVE * (x - GOAL) * (high - low) * s * (1 - s)
    x = low + (high - low) / (1 + np.exp(-u))
    options = {"optimizer": optax.sgd(0.02), "box": (low, high), "parametrisation": "sigmoid"}
    made = optimise_noise(KEY, BOWL, jnp.asarray(start), steps=7, **options)
    np.testing.assert_allclose(made.images, x, atol=1e-4)
    edges = optimise_noise(KEY, BOWL, jnp.full(SHAPE, high), steps=1, **options)
    assert np.isfinite(edges.images).all(), "the ends of the box have finite parameters"


def test_free_parametrisation_leaves_the_box():
    made = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=300, optimizer=optax.sgd(0.05), parametrisation="free")
    np.testing.assert_allclose(made.images, GOAL, atol=1e-4)
    assert made.images.min() < 0


def test_rescaling_uses_the_extremes_of_the_batch():
    x = START.astype(np.float64)
    for _ in range(5):
        x = x - 0.02 * 2 * CURVE * (x - GOAL)
        x = -1 + 3 * (x - x.min()) / (x.max() - x.min())
    options = {"optimizer": optax.sgd(0.02), "box": (-1.0, 2.0), "parametrisation": "rescale"}
    made = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=5, **options)
    np.testing.assert_allclose(made.images, x, atol=1e-4)
    flat = optimise_noise(KEY, lambda key, x: (0 * x.sum((1, 2, 3)), jnp.zeros(4)), jnp.ones(SHAPE), steps=1, **options)
    assert np.isfinite(flat.images).all()


def test_continuing_equals_one_longer_run():
    adam = optax.adam(0.05)
    whole = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=9, optimizer=adam)
    half = optimise_noise(KEY, BOWL, jnp.asarray(START), steps=4, optimizer=adam)
    rest = optimise_noise(KEY, BOWL, half.images, steps=5, optimizer=adam, optimizer_state=half.optimizer_state)
    afresh = optimise_noise(KEY, BOWL, half.images, steps=5, optimizer=adam)
    np.testing.assert_allclose(rest.images, whole.images, atol=1e-6)
    np.testing.assert_allclose(rest.optimizer_state[0].nu, whole.optimizer_state[0].nu, rtol=1e-5)
    assert np.abs(afresh.images - whole.images).max() > 1e-3


def test_jitter_rolls_what_the_objective_sees():
    seen = []

    def objective(key, images):
        jax.debug.callback(lambda x: seen.append(np.array(x)), images)
        return 0 * images.sum((1, 2, 3)), jnp.zeros(4)

    made = optimise_noise(KEY, objective, jnp.asarray(START), steps=30, optimizer=optax.sgd(0.0), jitter=1)
    jax.effects_barrier()
    np.testing.assert_array_equal(made.images, START)
    rolls = {(i, j): np.roll(START, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    met = [next((shift for shift, image in rolls.items() if np.array_equal(image, x)), None) for x in seen]
    assert None not in met, "one draw for the whole batch, at most one pixel"
    assert len(set(met)) >= 7, "30 draws of 9 shifts"


def test_the_gradient_is_rolled_back():
    # Descending Σ(roll(x) − c)² for a constant c moves every pixel towards c, wherever it was rolled to.
    objective = lambda key, images: (jnp.square(images - 0.5).sum((1, 2, 3)), jnp.zeros(4))
    made = optimise_noise(KEY, objective, jnp.asarray(START), steps=4, optimizer=optax.sgd(0.1), jitter=2)
    np.testing.assert_allclose(made.images, 0.5 + (START - 0.5) * 0.8**4, atol=1e-6)


def test_inside_jit_and_vmap():
    run = lambda key, start: optimise_noise(key, BOWL, start, steps=3, optimizer=optax.adam(0.05), jitter=1).images
    keys, starts = jax.random.split(KEY, 2), jnp.stack([START, 1 - START])
    many = jax.jit(jax.vmap(run))(keys, starts)
    for i in range(2):
        np.testing.assert_allclose(many[i], run(keys[i], starts[i]), atol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (InputError, "steps must be at least 1, got 0", {"steps": 0}),
        (InputError, r"start must be \(B, H, W, C\), got shape \(4, 3, 3\)", {"start": jnp.zeros((4, 3, 3))}),
        (InputError, r"at least one sample, got shape \(0, 3, 3, 1\)", {"start": jnp.zeros((0, 3, 3, 1))}),
        (InputError, "at least one sample", {"start": jnp.zeros((0, 3, 3, 1)), "context": jnp.zeros(0)}),
        (InputError, "jitter must not be negative, got -1", {"jitter": -1}),
        (UnknownNameError, "unknown parametrisation 'clipp'; nearest: clip", {"parametrisation": "clipp"}),
        (UnknownNameError, "unknown choice of keep 'bset'; nearest: best", {"keep": "bset"}),
    ],
)
def test_refusals(error, message, changes):
    arguments = {"start": jnp.asarray(START), "steps": 2, "optimizer": optax.sgd(0.1)} | changes
    with pytest.raises(error, match=message):
        optimise_noise(KEY, BOWL, **arguments)


@pytest.mark.parametrize(("batch", "group"), [(24, 6), (24, 5), (7, 3), (4, 100)])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_groups_change_nothing(batch, group, keep):
    start = jax.random.uniform(jax.random.key(3), (batch, 4, 4, 1))
    goal = jax.random.uniform(jax.random.key(4), (batch, 4, 4, 1))
    stop = jnp.linspace(-0.5, -0.01, batch)

    def objective(key, images, goal):
        loss = jnp.square(images - goal).sum((1, 2, 3))
        return loss, -loss

    adam = optax.adam(0.05)

    def run(start, state=None, **options):
        return optimise_noise(
            KEY, objective, start, steps=6, optimizer=adam, jitter=1, keep=keep, stop_at=stop, context=goal,
            optimizer_state=state, **options,
        )  # fmt: skip

    def twice(group):
        made = run(start, group=group)
        return made, run(made.images, made.optimizer_state, group=group)

    whole, grouped = jax.jit(lambda: (twice(batch), twice(group)))()
    chex.assert_trees_all_close(whole, grouped, atol=1e-6)


RULES = {
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    "trust": optax.lars(0.1),
    "order": optax.chain(optax.normalize_by_update_norm(), optax.adam(0.1)),
}


@pytest.mark.parametrize("rule", RULES)
def test_groups_change_nothing_for_rules_that_couple_samples(rule):
    start = jax.random.uniform(jax.random.key(3), (8, 4, 4, 1))
    goal = jnp.arange(8.0).reshape(8, 1, 1, 1)
    objective = lambda key, images, goal: (jnp.square(images - goal).sum((1, 2, 3)), jnp.zeros(len(images)))
    made = [
        optimise_noise(KEY, objective, start, steps=3, optimizer=RULES[rule], context=goal, group=group).images
        for group in (8, 2)
    ]
    np.testing.assert_allclose(*made, atol=1e-6)


def test_rules_pixel_by_pixel_are_grouped():
    for rule in (optax.adam(0.1), optax.adamw(0.1), optax.sgd(0.1, 0.9, nesterov=True), optax.rmsprop(0.1)):
        assert not _couples(rule)
    assert not _couples(optimiser("adam", 0.1, 10))
    for rule in RULES.values():
        assert _couples(rule)


def test_groups_over_devices(four):
    batch, mesh = 32, device_mesh(devices=four)
    start = jax.random.uniform(jax.random.key(3), (batch, 4, 4, 1))
    goal = jax.random.uniform(jax.random.key(4), (batch, 4, 4, 1))
    objective = lambda key, images, goal: ((jnp.square(images - goal)).sum((1, 2, 3)), jnp.zeros(len(images)))

    @jax.jit
    def run(start, goal):
        return optimise_noise(KEY, objective, start, steps=5, optimizer=optax.adam(0.05), context=goal, group=4).images

    alone = run(start, goal)
    with jax.set_mesh(mesh):
        together = run(*replicate((start, goal), mesh))
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_only_independent_samples_are_grouped():
    with pytest.raises(InputError, match="needs a context"):
        optimise_noise(KEY, BOWL, jnp.asarray(START), steps=1, optimizer=optax.adam(0.1), group=2)


@pytest.mark.parametrize(
    ("batch", "group", "groups"),
    [
        (24, 6, 4),
        (24, 5, 6),
        (12, 4, 3),
        (10, 4, 5),
        (15, 9, 3),
        (22, 5, 1),
        (7, 3, 1),
        (8, 8, 1),
        (4, 100, 1),
        (4, 1, 4),
    ],
)
def test_groups_are_the_largest_equal_parts(batch, group, groups):
    """The largest divisor up to the size asked for; all at once where that would be less than half of it."""
    split, merge, found = _grouping(batch, group)
    assert found == groups
    if groups == 1:
        return
    rows = jnp.arange(2.0 * batch).reshape(batch, 2)
    parts = split((rows, jnp.float32(7)))
    assert parts[0].shape == (groups, batch // groups, 2)
    np.testing.assert_array_equal(parts[1], [7] * groups)
    np.testing.assert_array_equal(merge(parts)[0], rows)
    assert merge(parts)[1] == 7


def test_groups_of_one():
    objective = lambda key, images, goal: (jnp.square(images - goal).sum((1, 2, 3)), jnp.zeros(len(images)))
    options = {"steps": 2, "optimizer": optax.adam(0.05), "context": jnp.asarray(GOAL)}
    made = [optimise_noise(KEY, objective, jnp.asarray(START), group=group, **options).images for group in (1, 4)]
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)
    with pytest.raises(InputError, match="group must be at least 1"):
        optimise_noise(KEY, objective, jnp.asarray(START), group=0, **options)


def test_what_couples_samples_is_not_grouped():
    """Rescaling goes by the extremes of all samples, with a context too; an objective without one sees all of them."""
    start = jnp.asarray(np.linspace(0, 1, 192).reshape(192, 1, 1, 1), jnp.float32)
    flat = lambda key, images, *context: (0 * images.sum((1, 2, 3)), jnp.zeros(len(images)))
    options = {"steps": 1, "optimizer": optax.sgd(0.1)}
    made = optimise_noise(KEY, flat, start, parametrisation="rescale", context=jnp.zeros(192), **options)
    np.testing.assert_allclose(made.images, start, atol=1e-6)
    coupled = lambda key, images: (jnp.square(images - images.mean()).sum((1, 2, 3)), jnp.zeros(len(images)))
    made = optimise_noise(KEY, coupled, start, **options)
    np.testing.assert_allclose(made.images, start - 0.2 * (start - 0.5), atol=1e-6)


def test_a_confidence_that_equals_the_threshold_stops():
    objective = lambda key, images: (images.sum((1, 2, 3)), jnp.full(4, 0.5))
    stop = jnp.array([0.5, 0.25, 0.75, 0.5])
    made = optimise_noise(KEY, objective, jnp.asarray(START), steps=3, optimizer=optax.sgd(0.01), stop_at=stop)
    np.testing.assert_array_equal(made.steps, [0, 0, 3, 0])


def test_the_ends_of_the_box_under_the_sigmoid():
    still = lambda key, images: (0 * images.sum((1, 2, 3)), jnp.zeros(4))
    ends = jnp.where(jnp.asarray(START) < 0.5, -1.0, 3.0)
    made = optimise_noise(
        KEY, still, ends, steps=1, optimizer=optax.sgd(0.1), box=(-1.0, 3.0), parametrisation="sigmoid"
    )
    np.testing.assert_allclose(made.images, np.where(START < 0.5, -1 + 4e-4, 3 - 4e-4), atol=1e-5)
