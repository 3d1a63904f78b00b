"""Networks against PyTorch versions written independently: equal weights, logits and running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.nn import BatchNorm, build
from dfke_jax.nn.alexnet import AlexNet, local_response_norm, overlapping_max_pool

torch = pytest.importorskip("torch")
F = torch.nn.functional


def numbers(rng, tree):
    """The tree filled with numbers of a scale that keeps activations near one; variances positive."""

    def fill(path, leaf):
        name = path[-1].key
        if name == "var":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name == "scale":
            return rng.uniform(0.7, 1.3, leaf.shape).astype(np.float32)
        if name in ("bias", "mean"):
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return jax.tree.map_with_path(fill, tree)


class Mirror:
    """Functional PyTorch over a tree of Flax variables: one method a layer, names are paths into the tree.

    In training it normalises with the batch and collects what PyTorch's running statistics would become.
    """

    def __init__(self, variables, train):
        self.variables, self.train, self.running = variables, train, {}

    def _at(self, kind, path):
        tree = self.variables[kind]
        for part in path.split("/"):
            tree = tree[part]
        return {name: torch.from_numpy(np.asarray(value)) for name, value in tree.items()}

    def conv(self, path, x, stride=1, padding=0):
        weights = self._at("params", path)
        return F.conv2d(x, weights["kernel"].permute(3, 2, 0, 1), weights.get("bias"), stride, padding)

    def dense(self, path, x):
        weights = self._at("params", path)
        return F.linear(x, weights["kernel"].T, weights["bias"])

    def flat_dense(self, path, x):
        """A dense layer on a map: Flax flattens H, W, C, PyTorch C, H, W, so rows of the weights move."""
        weights = self._at("params", path)
        _, channels, height, width = x.shape
        kernel = weights["kernel"].reshape(height, width, channels, -1).permute(2, 0, 1, 3)
        return F.linear(x.flatten(1), kernel.reshape(channels * height * width, -1).T, weights["bias"])

    def norm(self, path, x):
        weights, stats = self._at("params", path), self._at("batch_stats", path)
        mean, var = stats["mean"].clone(), stats["var"].clone()
        y = F.batch_norm(x, mean, var, weights["scale"], weights["bias"], self.train, 0.1, 1e-5)
        self.running[path] = (mean.numpy(), var.numpy(), x.numel() // x.shape[1])
        return y


def lenet(m, x):
    x = F.max_pool2d(m.conv("conv1", x).relu(), 2)
    x = F.max_pool2d(m.conv("conv2", x).relu(), 2)
    x = m.flat_dense("dense1", x).relu()
    return m.dense("head", m.dense("dense2", x).relu())


def lenet_bn(m, x):
    x = F.max_pool2d(m.norm("conv1_norm", m.conv("conv1", x)).relu(), 2)
    x = F.max_pool2d(m.norm("conv2_norm", m.conv("conv2", x)).relu(), 2)
    x = m.norm("dense1_norm", m.flat_dense("dense1", x)).relu()
    return m.dense("head", m.norm("dense2_norm", m.dense("dense2", x)).relu())


def resnet8(m, x):
    x = m.norm("conv_norm", m.conv("conv", x, 1, 1)).relu()
    for stage in (1, 2, 3):
        at, stride = f"stage{stage}_block1", 1 if stage == 1 else 2
        y = m.norm(f"{at}/conv1_norm", m.conv(f"{at}/conv1", x, stride, 1)).relu()
        y = m.norm(f"{at}/conv2_norm", m.conv(f"{at}/conv2", y, 1, 1))
        if stage > 1:
            x = m.norm(f"{at}/shortcut_norm", m.conv(f"{at}/shortcut", x, 2))
        x = (x + y).relu()
    return m.dense("head", x.mean((2, 3)))


def wrn_16_1(m, x):
    x = m.conv("conv", x, 1, 1)
    for stage in (1, 2, 3):
        for block in (1, 2):
            at = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = m.norm(f"{at}/norm1", x).relu()
            if stride == 2:
                x = m.conv(f"{at}/shortcut", y, 2)
            y = m.conv(f"{at}/conv1", y, stride, 1)
            x = x + m.conv(f"{at}/conv2", m.norm(f"{at}/norm2", y).relu(), 1, 1)
    return m.dense("head", m.norm("top_norm", x).relu().mean((2, 3)))


def vgg11(m, x):
    for stage, depth in enumerate((1, 1, 2, 2, 2), 1):
        for i in range(1, depth + 1):
            x = m.norm(f"stage{stage}_conv{i}_norm", m.conv(f"stage{stage}_conv{i}", x, 1, 1)).relu()
        if stage <= 3:
            x = F.max_pool2d(x, 2)
    return m.dense("head", x.mean((2, 3)))


def naive_lrn(x, axis):
    """With TensorFlow's constants: five channels, k = 1, alpha = 1e-4 (not divided), beta = 0.75."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        window = x[..., max(c - 2, 0) : c + 3]
        y[..., c] = x[..., c] / (1 + 1e-4 * (window**2).sum(-1)) ** 0.75
    return np.moveaxis(y, -1, axis)


def alexnet(m, x):
    for i in range(1, 6):
        x = m.conv(f"conv{i}", x, 1, 2 if i <= 2 else 1).relu()
        if i <= 2:
            x = torch.from_numpy(naive_lrn(x.numpy(), 1).astype(np.float32))
        if i in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2)
        x = m.norm(f"conv{i}_norm", x)
    x = m.norm("dense1_norm", m.flat_dense("dense1", x).relu())
    return m.dense("head", m.norm("dense2_norm", m.dense("dense2", x).relu()))


CASES = {
    "lenet5": (lenet, 32, 1),
    "lenet5_bn": (lenet_bn, 32, 1),
    "resnet8": (resnet8, 15, 3),  # odd, then even: padding at stride two matters
    "wrn_16_1": (wrn_16_1, 16, 3),
    "vgg11": (vgg11, 16, 3),
    "alexnet": (alexnet, 32, 3),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_and_running_statistics(name):
    mirror, size, channels = CASES[name]
    rng = np.random.default_rng(3)
    # Dropout draws its own numbers in each library, so it is switched off for the comparison.
    module = AlexNet(dropout=0.0) if name == "alexnet" else build(name)
    images = rng.uniform(-1, 1, (6, size, size, channels)).astype(np.float32)
    variables = numbers(rng, jax.eval_shape(lambda: module.init(jax.random.key(0), images)))
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2)

    for train in (False, True):
        torch_side = Mirror(variables, train)
        with torch.no_grad():
            expected = mirror(torch_side, theirs).numpy()
        run = jax.jit(lambda v, x, train=train: module.apply(v, x, train=train, mutable=["batch_stats"]))
        logits, state = run(variables, images)
        np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=2e-4)
        assert np.abs(expected).max() > 0.01

        for path, (mean, var, count) in torch_side.running.items():
            ours, before = state["batch_stats"], variables["batch_stats"]
            for part in path.split("/"):
                ours, before = ours[part], before[part]
            if not train:
                np.testing.assert_array_equal(ours["mean"], before["mean"])
                np.testing.assert_array_equal(ours["var"], before["var"])
                continue
            np.testing.assert_allclose(ours["mean"], mean, atol=1e-5)
            # PyTorch averages n / (n - 1) times the batch variance.
            biased = 0.9 * before["var"] + (var - 0.9 * before["var"]) * (count - 1) / count
            np.testing.assert_allclose(ours["var"], biased, atol=1e-5, rtol=1e-5)
            assert not np.allclose(ours["var"], before["var"], atol=1e-4)


def test_biased_and_unbiased_running_variance():
    """With few rows the two conventions differ visibly; ours is the biased one."""
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    layer = torch.nn.BatchNorm1d(5)
    layer(torch.from_numpy(x))
    variables = BatchNorm().init(jax.random.key(0), x)
    _, state = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(state["batch_stats"]["mean"], layer.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * x.var(0), atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * x.var(0, ddof=1), atol=1e-6)


def test_local_response_norm():
    x = np.random.default_rng(1).normal(0, 30, (2, 3, 4, 7)).astype(np.float32)
    np.testing.assert_allclose(local_response_norm(x), naive_lrn(x, 3), rtol=1e-5)
    # PyTorch's layer divides alpha by its window; five times the constant is the same function.
    theirs = F.local_response_norm(torch.from_numpy(x).permute(0, 3, 1, 2), 5, alpha=5e-4, beta=0.75, k=1.0)
    np.testing.assert_allclose(local_response_norm(x), theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (15, 15), (7, 10)])
def test_overlapping_max_pool(size):
    x = np.random.default_rng(2).normal(size=(2, *size, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    pooled = F.max_pool2d(theirs, 3, 2)
    np.testing.assert_array_equal(overlapping_max_pool(x), pooled.detach().permute(0, 2, 3, 1).numpy())
    pooled.square().sum().backward()
    gradient = jax.grad(lambda x: jnp.square(overlapping_max_pool(x)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, theirs.grad.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_dropout_needs_a_stream_only_in_training():
    module = AlexNet(filters=(4, 4, 4, 4, 4), units=(16, 8))
    images = np.random.default_rng(4).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    variables = numbers(np.random.default_rng(5), shapes)

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    def without_stream(train):
        return jax.eval_shape(lambda: module.apply(variables, images, train=train, mutable=["batch_stats"])[0])

    np.testing.assert_array_equal(train(1), train(1))
    assert not np.allclose(train(1), train(2))
    assert without_stream(train=False).shape == (4, 10)
    with pytest.raises(Exception, match="dropout"):
        without_stream(train=True)
