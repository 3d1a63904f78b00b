"""The speed-run network, its first layer, its optimiser and a step of its training, against others' words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.data import alternating_flip, reflect_shift
from dfke_jax.nn import (
    Airbench,
    AirbenchSettings,
    Classifier,
    Preprocessing,
    airbench_training,
    build,
    muon,
    newton_schulz,
    whitening_filters,
)
from dfke_jax.nn.airbench import identity_kernel
from dfke_jax.nn.losses import smooth_labels
from dfke_jax.nn.named import network

SHAPE = (7, 7, 3)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(12, *SHAPE)).astype(np.float32)
LABELS = np.arange(12) % 4
SETTINGS = AirbenchSettings(batch_size=12, epochs=2, whitening_images=12)


def orthogonal(matrix, steps):
    """The iteration on singular values alone, where it is a polynomial."""
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    s = s / (np.linalg.norm(s) + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_newton_schulz_acts_on_singular_values(shape):
    matrix = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(newton_schulz(matrix), orthogonal(matrix, 3), atol=2e-5)
    with pytest.raises(InputError, match="a matrix is needed"):
        newton_schulz(jnp.zeros((2, 3, 4)))


def test_newton_schulz_is_that_of_optax():
    contrib = pytest.importorskip("optax.contrib")
    matrix = {"kernel": jnp.asarray(RNG.normal(size=(8, 5)).astype(np.float32))}
    if not hasattr(contrib, "muon"):
        pytest.skip("this optax has no muon")
    rule = contrib.muon(1.0, ns_steps=3, nesterov=False)
    theirs, _ = rule.update(matrix, rule.init(matrix), matrix)
    np.testing.assert_allclose(-theirs["kernel"], newton_schulz(matrix["kernel"]), atol=1e-5)


def test_muon_keeps_the_norm_and_adds_nesterov_momentum():
    kernel = RNG.normal(size=(3, 3, 2, 5)).astype(np.float32)
    gradients = RNG.normal(size=(2, *kernel.shape)).astype(np.float32)
    rule, ours, momentum = muon(0.1, 0.6), jnp.asarray(kernel), 0
    state, expected = rule.init(ours), kernel.astype(np.float64)
    for gradient in gradients:
        updates, state = rule.update(jnp.asarray(gradient), state, ours)
        ours = ours + updates
        momentum = 0.6 * momentum + gradient
        step = orthogonal((gradient + 0.6 * momentum).reshape(-1, 5), 3).reshape(kernel.shape)
        expected = expected * np.sqrt(5) / np.linalg.norm(expected) - 0.1 * step
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_whitening_makes_the_patches_white():
    filters = np.asarray(whitening_filters(jnp.asarray(IMAGES), epsilon=1e-9), np.float64)
    assert filters.shape == (2, 2, 3, 24)
    patches = np.stack([image[i : i + 2, j : j + 2].ravel() for image in IMAGES for i in range(6) for j in range(6)])
    answers = patches @ filters.reshape(12, 24)
    np.testing.assert_allclose(answers[:, :12].T @ answers[:, :12] / len(patches), np.eye(12), atol=2e-3)
    np.testing.assert_array_equal(filters[..., 12:], -filters[..., :12])
    power = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    np.testing.assert_allclose((filters[..., :12] ** 2).sum((0, 1, 2)), 1 / (power + 1e-9), rtol=2e-3)
    with pytest.raises(InputError, match="patches of 8×8"):
        whitening_filters(jnp.asarray(IMAGES), 8)


def test_whitening_of_as_many_smooth_images_as_are_published():
    # the largest eigenvalue is 10^4 times the smallest and more, as in photographs; a sum over all patches at once loses it
    rng = np.random.default_rng(5)
    images = rng.normal(size=(5000, 1, 1, 3)) + 0.01 * rng.normal(size=(5000, 32, 32, 3))
    images = (1.5 * images).astype(np.float32)
    filters = np.asarray(jax.jit(whitening_filters)(jnp.asarray(images)))
    patches = np.concatenate([images[:, i : 31 + i, j : 31 + j] for i in (0, 1) for j in (0, 1)], -1).reshape(-1, 12)
    power = np.linalg.eigvalsh(
        sum(part.T.astype(np.float64) @ part for part in np.array_split(patches, 50)) / len(patches)
    )
    assert power[-1] / power[0] > 1e4
    np.testing.assert_allclose((filters[..., :12] ** 2).sum((0, 1, 2)), 1 / (power + 5e-4), rtol=2e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_bias_is_as_small_as_its_patches_allow(channels):
    shape = (1, 9, 9, channels)
    biases = jnp.stack([
        Airbench(3, (2,)).init(jax.random.key(i), jnp.zeros(shape))["params"]["whiten"]["bias"] for i in range(8)
    ])  # fmt: skip
    assert biases.shape == (8, 8 * channels)
    bound = 1 / (4 * channels) ** 0.5
    assert 0.8 * bound < np.abs(biases).max() <= bound


def test_kernels_begin_as_the_identity():
    kernel = np.asarray(identity_kernel(jax.random.key(0), (3, 3, 4, 6)))
    torch = pytest.importorskip("torch")
    theirs = torch.nn.init.dirac_(torch.empty(4, 4, 3, 3)).numpy()
    np.testing.assert_array_equal(kernel[..., :4].transpose(3, 2, 0, 1), theirs)
    assert 0.9 / 6 < np.abs(kernel[..., 4:]).max() <= 1 / 6


def test_label_smoothing_is_pytorchs():
    torch = pytest.importorskip("torch")
    logits = RNG.normal(size=(12, 4)).astype(np.float32)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(LABELS), label_smoothing=0.2, reduction="none"
    )
    ours = -(smooth_labels(jnp.asarray(LABELS), 4, 0.2) * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def forward(torch, weights, x, widths, train, running):
    """The network in PyTorch over weights by name (OIHW); normalisation by the batch or by what runs."""
    F = torch.nn.functional

    def norm(x, name):
        mean, var = running[name]
        return F.batch_norm(x, mean, var, None, weights[name], train, 0.4, 1e-12)

    x = F.gelu(F.conv2d(x, weights["whiten"], weights["whiten_bias"]))
    for i in range(1, len(widths) + 1):
        x = F.max_pool2d(F.conv2d(x, weights[f"group{i}_conv1"], padding=1), 2)
        x = F.gelu(norm(x, f"group{i}_conv1_norm"))
        x = F.gelu(norm(F.conv2d(x, weights[f"group{i}_conv2"], padding=1), f"group{i}_conv2_norm"))
    x = x.amax((2, 3))
    return F.linear(x, weights["head"]) / x.shape[1]


def test_two_steps_are_pytorchs():
    """Two passes of one batch: forward, loss, gradients, SGD with decay, Muon, schedules, running means."""
    torch = pytest.importorskip("torch")
    widths = (4, 6)
    student = Classifier.create(Airbench(4, widths), jax.random.key(0), SHAPE)
    method = airbench_training(student, IMAGES, LABELS, SETTINGS)
    start = state = method.init(jax.random.key(1))
    step = jax.jit(method.step)
    losses = []
    for i in range(2):
        state, metrics = step(jax.random.key(i), state)
        losses.append(float(metrics["loss"]))

    def translated(variables):
        weights, norms = {}, {}
        for name, layer in variables["params"].items():
            layer = {part: np.array(value) for part, value in layer.items()}
            if name == "head":
                weights[name] = layer["kernel"].T
            elif name.endswith("norm"):
                weights[name] = layer["bias"]
                norms[name] = tuple(np.array(variables["batch_stats"][name][part]) for part in ("mean", "var"))
            else:
                weights[name] = layer["kernel"].transpose(3, 2, 0, 1)
                if "bias" in layer:
                    weights["whiten_bias"] = layer["bias"]
        return weights, norms

    weights, norms = translated(start.variables)
    weights = {name: torch.tensor(value.copy(), requires_grad=name != "whiten") for name, value in weights.items()}
    norms = {name: tuple(torch.tensor(value) for value in pair) for name, pair in norms.items()}
    kernels = [name for name in weights if "conv" in name and not name.endswith("norm")]
    biases, decay = [name for name in weights if name.endswith("norm")], 2e-6 * 12
    groups = [["whiten_bias"], biases, ["head"]]
    rates = [0.053, 0.053, 0.67]
    sgd = torch.optim.SGD(
        [
            {"params": [weights[name] for name in group], "lr": rate, "weight_decay": decay / rate}
            for group, rate in zip(groups, rates, strict=True)
        ],
        momentum=0.85,
        nesterov=True,
    )
    momenta = dict.fromkeys(kernels, 0)
    inputs, labels = torch.tensor(IMAGES).permute(0, 3, 1, 2), torch.tensor(LABELS)
    for i in range(2):
        logits = forward(torch, weights, inputs, widths, True, norms)
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")
        sgd.zero_grad()
        gradients = torch.autograd.grad(loss, [weights[name] for name in kernels], retain_graph=True)
        loss.backward()
        # the first layer's bias is trained for ⌈0.375·2⌉ = 1 of the two steps
        for group, rate, steps in zip(sgd.param_groups, rates, (1, 2, 2), strict=True):
            group["lr"] = rate * max(0, 1 - i / steps)
        sgd.step()
        with torch.no_grad():
            for name, gradient in zip(kernels, gradients, strict=True):
                momenta[name] = 0.6 * momenta[name] + gradient
                step_ = orthogonal((gradient + 0.6 * momenta[name]).reshape(len(gradient), -1).numpy(), 3)
                weights[name].mul_(len(gradient) ** 0.5 / weights[name].norm())
                weights[name].sub_(
                    0.24 * (1 - i / 2) * torch.tensor(step_.reshape(gradient.shape), dtype=torch.float32)
                )
        np.testing.assert_allclose(losses[i], loss.item() / 12, rtol=1e-4)

    ours, _ = translated(state.variables)
    for name, value in weights.items():
        np.testing.assert_allclose(ours[name], value.detach().numpy(), atol=3e-4, rtol=1e-3, err_msg=name)
    begun, _ = translated(start.variables)
    assert not np.allclose(ours["whiten_bias"], begun["whiten_bias"], atol=1e-5)
    with torch.no_grad():
        expected = forward(torch, {**weights, **_tensors(torch, ours)}, inputs, widths, False, _running(torch, state))
    ours = student.replace(variables=state.variables)(jnp.asarray(IMAGES))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def _tensors(torch, weights):
    return {name: torch.tensor(value.copy()) for name, value in weights.items()}


def _running(torch, state):
    """Means and variances are ours: PyTorch's running variances are unbiased."""
    return {
        name: tuple(torch.tensor(np.array(part[of])) for of in ("mean", "var"))
        for name, part in state.variables["batch_stats"].items()
    }


def test_a_pass_shows_every_image_once_and_mirrored_ones_alternate():
    """Rows of one colour each: what the flip is given tells which images a batch has."""
    images = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None, None] / 12, (12, 3, 3, 1))
    student = Classifier.create(Airbench(4, (1,)), jax.random.key(0), (3, 3, 1))
    settings = AirbenchSettings(batch_size=4, whitening_images=3)
    seen = []

    def look(images, mirrored, epoch):
        jax.debug.callback(
            lambda *values: seen.append([np.array(value) for value in values]), images, mirrored, epoch, ordered=True
        )
        return images

    method = airbench_training(student, images, LABELS, settings, flip=Partial(look))
    state = jax.jit(method.init)(jax.random.key(2))
    step = jax.jit(method.step)
    for i in range(6):
        state, _ = step(jax.random.key(i), state)
    jax.effects_barrier()
    assert [int(epoch) for _, _, epoch in seen] == [0, 0, 0, 1, 1, 1]
    rows = np.concatenate([np.rint(12 * batch[:, 0, 0, 0]).astype(int) for batch, _, _ in seen])
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert list(rows[:12]) != list(rows[12:])
    mirrored = np.concatenate([row for _, row, _ in seen])
    np.testing.assert_array_equal(mirrored, np.asarray(state.mirrored)[rows])


def test_alternating_flip_shows_both_sides_in_two_passes():
    mirrored = jnp.arange(12) % 3 == 0
    first, second, third = (np.asarray(alternating_flip(jnp.asarray(IMAGES), mirrored, i)) for i in range(3))
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    np.testing.assert_array_equal(third, first)
    for i, image in enumerate(first):
        np.testing.assert_array_equal(image, IMAGES[i][:, ::-1] if i % 3 == 0 else IMAGES[i])


def test_reflect_shift_cuts_windows_of_the_reflected_image():
    moved = np.asarray(reflect_shift(2)(jax.random.key(0), jnp.asarray(IMAGES)))
    places = set()
    for image, found in zip(IMAGES, moved, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), "reflect")
        fits = [(i, j) for i in range(5) for j in range(5) if np.array_equal(padded[i : i + 7, j : j + 7], found)]
        assert len(fits) == 1
        places.update(fits)
    assert len(places) > 5


def test_images_are_normalised_and_networks_have_names():
    info = network("airbench94", 10, (32, 32, 3))
    assert info.preprocessing == Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert network("airbench94_half", 10, (28, 28, 1)).preprocessing == Preprocessing()
    with pytest.raises(InputError, match="at least 9 pixels a side, got 8×8"):
        jax.eval_shape(lambda: build("airbench94").init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"head_rate": 0.0}, "head_rate must be positive"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"steps": -1}, "steps and weight_decay"),
    ],
)
def test_settings_that_mean_nothing(change, message):
    with pytest.raises(InputError, match=message):
        AirbenchSettings(**change)


def test_what_it_is_not_made_for():
    other = network("mlp_small", 4, SHAPE)
    with pytest.raises(InputError, match="networks of its own family, not MLP"):
        airbench_training(other, IMAGES, LABELS, SETTINGS)
    student = Classifier.create(Airbench(4, (1,)), jax.random.key(0), SHAPE)
    with pytest.raises(InputError, match="a batch of 2000 out of 12 images"):
        airbench_training(student, IMAGES, LABELS)
    assert AirbenchSettings().steps_for(50_000) == 200
