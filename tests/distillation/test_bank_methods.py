"""CMI, Fast-DFKD and NAYER: one batch written out by hand, and what they carry to the next."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.data.augment import flip, resized_crop
from dfke_jax.distillation.cmi import CMISettings, cmi, contrast, pooled
from dfke_jax.distillation.fast_dfkd import FastSettings, fast_dfkd
from dfke_jax.distillation.inversion_loss import averaged, inversion_loss, no_averages
from dfke_jax.distillation.nayer import NAYERSettings, label_embedding, nayer, noisy_latents
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.mlp import MLP

SHAPE, K = (8, 8, 1), 3
KEY = jax.random.key(51)
# the functions of the same names stand before these modules in the package
cmi_file, fast_file, nayer_file = (
    importlib.import_module(f"dfke_jax.distillation.{name}") for name in ("cmi", "fast_dfkd", "nayer")
)
RNG = np.random.default_rng(7)


def perturbed(seed, units, batch_norm):
    """A network whose running statistics are not those of a fresh one."""
    made = Classifier.create(MLP(K, units, batch_norm=batch_norm), jax.random.key(seed), SHAPE)
    running = made.variables.get("batch_stats", {})
    shift = lambda leaf: leaf + jnp.asarray(RNG.uniform(0.1, 0.5, leaf.shape), jnp.float32)
    return made.replace(variables={**made.variables, "batch_stats": jax.tree.map(shift, running)})


TEACHER, STUDENT = perturbed(0, (7,), True), perturbed(1, (4,), False)
SMALL = {"batch_size": 6, "width": 2, "latent": 3, "steps": 2, "rounds": 9, "warm_up": 1}


@jax.jit
def images_of(params, z):
    module = DFMEGenerator(SHAPE, 2, z.shape[1], normalised_output=False)
    x, _ = module.apply({"params": params}, z, train=True, mutable=["batch_stats"], method="pre_activation")
    return jax.nn.sigmoid(2 * x)


def log_softmax(z):
    return z - jax.scipy.special.logsumexp(z, -1, keepdims=True)


def moments(images):
    """Mean and biased variance of what enters the teacher's normalisation."""
    dense = TEACHER.variables["params"]["dense1"]
    rows = images.reshape(images.shape[0], -1) @ dense["kernel"] + dense["bias"][None]
    return rows.mean(0), rows.var(0)


def by_hand(weights, images, labels, mean, var, competes):
    """The inversion loss, of given batch moments."""
    stored = TEACHER.variables["batch_stats"]["dense1_norm"]
    norm = lambda v: jnp.sqrt(jnp.sum(jnp.square(v)))
    statistics = norm(mean - stored["mean"]) + norm(var - stored["var"])
    t, s = TEACHER(images), STUDENT(images)
    one_hot = -jnp.mean(log_softmax(t)[jnp.arange(len(labels)), labels])
    kl = jnp.sum(jnp.exp(log_softmax(t)) * (log_softmax(t) - log_softmax(s)), -1)
    adversarial = -jnp.mean((t.argmax(-1) == s.argmax(-1)) * kl)
    return weights[0] * statistics + weights[1] * one_hot + competes * weights[2] * adversarial


def close(first, second, rtol=2e-3, atol=2e-5):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_the_inversion_loss_and_its_terms():
    s = FastSettings(**SMALL, statistics=3.0, one_hot=0.7, adversarial=2.0)
    images = jnp.asarray(RNG.uniform(size=(6, *SHAPE)), jnp.float32)
    labels = jnp.arange(6) % K
    loss, _, terms = inversion_loss(s, TEACHER, STUDENT, images, labels, jnp.float32(0.5))
    np.testing.assert_allclose(loss, by_hand((3.0, 0.7, 2.0), images, labels, *moments(images), 0.5), rtol=1e-4)
    assert set(terms) == {"statistics", "one_hot", "adversarial"}
    assert terms["adversarial"] < 0, "on some image the networks agree"
    first = averaged(TEACHER.observe(images, moments=True).moments, no_averages(TEACHER), 0.9)
    close((first.mean[0], first.var[0]), moments(images))
    other = images[::-1] * 0.5
    blend = [0.1 * new + 0.9 * old for new, old in zip(moments(other), moments(images), strict=True)]
    loss, seen, _ = inversion_loss(s, TEACHER, STUDENT, other, labels, jnp.float32(0), averages=first, keep=0.9)
    np.testing.assert_allclose(loss, by_hand((3.0, 0.7, 2.0), other, labels, *blend, 0.0), rtol=1e-4)
    close((averaged(seen.moments, first, 0.9).mean[0], averaged(seen.moments, first, 0.9).var[0]), blend)


@pytest.mark.parametrize("meta", ["fomaml", pytest.param("reptile", marks=pytest.mark.slow)])
def test_fast_dfkd_inverts_a_clone_and_moves_the_shared_start(meta):
    s = FastSettings(**SMALL, statistics=1.0, generator_rate=1e-2, latent_rate=0.1, meta=meta)
    inverter = fast_file._Fast(augment=None, settings=s)
    begun = jax.jit(inverter.begin)(KEY, TEACHER)
    made = jax.jit(inverter.make)(KEY, TEACHER, STUDENT, jnp.int32(1), begun)
    label_key, latent_key, _ = jax.random.split(KEY, 3)
    labels = jax.random.randint(label_key, (6,), 0, K)
    np.testing.assert_array_equal(made.labels, labels)
    z, theta = jax.random.normal(latent_key, (6, 3)), begun.generator
    rates = optax.adam(0.1, b1=0.5), optax.adam(1e-2, b1=0.5)
    states = rates[0].init(z), rates[1].init(theta)
    total, seen = jax.tree.map(jnp.zeros_like, theta), []

    @jax.jit
    @jax.value_and_grad
    def judged(both):
        x = images_of(both[1], both[0])
        return by_hand((1.0, 0.5, 1.33), x, labels, *moments(x), 1.0)

    clone = theta
    for _ in range(2):
        loss, gradients = judged((z, clone))
        seen.append((loss, images_of(clone, z)))
        total = jax.tree.map(jnp.add, total, gradients[1])
        moved, states = zip(
            *(rule.update(g, state) for rule, g, state in zip(rates, gradients, states, strict=True)), strict=True
        )
        z, clone = z + moved[0], optax.apply_updates(clone, moved[1])
    loss, images = min(seen, key=lambda pair: float(pair[0]))
    np.testing.assert_allclose(made.metrics["inversion_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(made.images, images, atol=2e-3)
    close((made.carried.averages.mean[0], made.carried.averages.var[0]), moments(seen[-1][1]), rtol=2e-2, atol=2e-3)
    direction = total if meta == "fomaml" else jax.tree.map(lambda a, b: 67 * (a - b), theta, clone)
    # the first step of Adam is −rate·sign(g) wherever g is well above its epsilon
    step = jax.tree.map(lambda a, b: np.asarray(a - b), made.carried.generator, theta)
    for moved, g in zip(jax.tree.leaves(step), jax.tree.leaves(direction), strict=True):
        sure = np.abs(g) > 1e-3
        np.testing.assert_allclose(moved[sure], -2e-2 * np.sign(np.asarray(g)[sure]), rtol=1e-2)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(direction)) > 1e-2


def test_contrast_against_numpy():
    near, far, earlier = (RNG.normal(size=(n, 5)).astype(np.float32) for n in (4, 4, 3))
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for known in (True, False):
        among = [unit(far), unit(earlier)] if known else [unit(far)]
        similar = np.exp(unit(near) @ np.concatenate(among).T / 0.3)
        expected = -np.mean(np.log(np.diagonal(similar) / similar.sum(1)))
        np.testing.assert_allclose(contrast(near, far, earlier, np.full(3, known), 0.3), expected, rtol=1e-4)


@pytest.mark.slow
def test_cmi_draws_a_generator_for_every_batch_and_remembers_its_features():
    s = CMISettings(**{**SMALL, "steps": 1, "warm_up": 0}, negatives=4, feature_bank=8, projection=3)
    inverter = cmi_file._CMI(augment=None, view=flip(), settings=s)
    begun, make = jax.jit(inverter.begin)(KEY, TEACHER), jax.jit(inverter.make)
    made = make(KEY, TEACHER, STUDENT, jnp.int32(0), begun)
    label_key, latent_key, generator_key, _, run_key = jax.random.split(KEY, 5)
    labels = jax.random.randint(label_key, (6,), 0, K)
    module = DFMEGenerator(SHAPE, 2, 3, normalised_output=False)
    params = jax.jit(module.init)(generator_key, jnp.zeros((2, 3)))["params"]
    x = images_of(params, jax.random.normal(latent_key, (6, 3)))
    np.testing.assert_allclose(made.images, x, atol=1e-5)
    features = pooled(TEACHER.observe(x, activations=True).activations)
    assert features.shape == (6, 14), "the layer before its ReLU, and the features behind it"
    np.testing.assert_allclose(made.carried.features[:6], features, rtol=1e-4, atol=1e-5)
    second = flip()(jax.random.split(jax.random.fold_in(run_key, 0))[1], x)
    head = begun.projection

    def project(head, rows):
        hidden = jnp.maximum(rows @ head["hidden"]["kernel"] + head["hidden"]["bias"][None], 0)
        return hidden @ head["output"]["kernel"] + head["output"]["bias"][None]

    def contrastive(head):
        near = project(head, pooled(TEACHER.observe(second, activations=True).activations))
        far = project(head, features)
        similar = near @ far.T / jnp.linalg.norm(near, axis=1)[:, None] / jnp.linalg.norm(far, axis=1)[None] / 0.1
        return -jnp.mean(jnp.diagonal(log_softmax(similar)))

    expected = by_hand((1.0, 0.5, 0.5), x, labels, *moments(x), 1.0) + 0.8 * contrastive(head)
    np.testing.assert_allclose(made.metrics["inversion_loss"], expected, rtol=1e-4)
    gradient = jax.grad(contrastive)(head)
    for after, before, g in zip(*map(jax.tree.leaves, (made.carried.projection, head, gradient)), strict=True):
        sure = np.abs(g) > 1e-3
        np.testing.assert_allclose((after - before)[sure], -1e-3 * np.sign(np.asarray(g)[sure]), rtol=2e-2)
    again = make(jax.random.key(1), TEACHER, STUDENT, jnp.int32(1), made.carried)
    np.testing.assert_allclose(again.carried.features[4:6], made.carried.features[4:6])
    assert np.abs(again.carried.features[:4] - made.carried.features[:4]).max(1).min() > 1e-3, "the ring begins again"


def test_noisy_latents_against_numpy():
    rows, kernel, bias = (RNG.normal(size=shape) for shape in ((6, 4), (2, 4, 3), (2, 3)))
    scale, offset = RNG.normal(size=(2, 4))
    normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * scale + offset
    expected = [normal[b] @ kernel[b // 3] + bias[b // 3] for b in range(6)]
    found = noisy_latents({"kernel": kernel, "bias": bias}, {"scale": scale, "offset": offset}, jnp.asarray(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nayer_goes_on_with_its_generator_until_it_is_renewed():
    s = NAYERSettings(**{**SMALL, "steps": 1}, batches=1, renew=2)
    embedding = label_embedding("one_hot", K)
    inverter = nayer_file._NAYER(embedding=embedding, augment=None, settings=s, chunk=K)
    begun, make = jax.jit(inverter.begin)(KEY, TEACHER), jax.jit(inverter.make)
    made = make(KEY, TEACHER, STUDENT, jnp.int32(0), begun)
    layer_key = jax.random.split(KEY, 3)[0]
    kernel = jax.random.normal(layer_key, (2, K, 3))
    rows = np.eye(K)[np.arange(6) % K]
    normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    z = jnp.asarray([normal[b] @ np.asarray(kernel[b // K]) for b in range(6)], jnp.float32)
    np.testing.assert_allclose(made.images, images_of(begun.generator["network"], z), atol=1e-4)
    np.testing.assert_array_equal(made.labels, np.arange(6) % K)
    apart = lambda a, b: max(
        float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a.generator, b.generator)), strict=True)
    )
    assert 0 < apart(made.carried, begun) <= 4.1e-3, "one step of Adam"
    second = make(jax.random.key(1), TEACHER, STUDENT, jnp.int32(1), made.carried).carried
    third = make(jax.random.key(2), TEACHER, STUDENT, jnp.int32(2), second).carried
    assert apart(second, made.carried) <= 4.1e-3
    assert apart(third, second) > 0.05, "drawn afresh after two rounds"


def test_embeddings_and_bad_input():
    rows = label_embedding("random", K, 5, KEY)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    with pytest.raises(UnknownNameError, match="embedding of labels"):
        label_embedding("clip", K)
    with pytest.raises(InputError, match="needs a width"):
        label_embedding("random", K)
    with pytest.raises(InputError, match=r"embedding must be \(3, E\)"):
        nayer(TEACHER, STUDENT, NAYERSettings(**SMALL), embedding=jnp.eye(4))
    with pytest.raises(InputError, match="6 images is not made of chunks of 4"):
        nayer(TEACHER, STUDENT, NAYERSettings(**SMALL, chunk=4))
    for make, settings in ((cmi, CMISettings), (fast_dfkd, FastSettings), (nayer, NAYERSettings)):
        with pytest.raises(InputError, match="MLP shows none: it has no batch normalisation"):
            make(STUDENT, STUDENT, settings(**SMALL))
    with pytest.raises(UnknownNameError, match="way of meta-learning"):
        FastSettings(meta="maml")
    with pytest.raises(InputError, match="feature_bank hold a batch"):
        CMISettings(feature_bank=10)
    with pytest.raises(InputError, match="smallest_area"):
        resized_crop(0)
