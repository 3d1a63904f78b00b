"""Every loss against its formula written as loops in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.nn import losses

B, K = 5, 4


def draw(seed, *shape, scale=2.0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(scale)


def softmax(row, temperature=1.0):
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(difference):
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def naive_js(first, second, temperature):
    p, q = softmax(first, temperature), softmax(second, temperature)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def naive_distances(rows):
    rows = rows.astype(np.float64)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    lengths = {(i, j): math.sqrt(sum((rows[i] - rows[j]) ** 2)) for i, j in pairs}
    mean = sum(lengths.values()) / len(pairs)
    return {pair: length / mean for pair, length in lengths.items()}


def naive_angle(rows, i, j, k):
    rows = rows.astype(np.float64)
    first, second = rows[i] - rows[j], rows[k] - rows[j]
    return sum(first * second) / math.sqrt(sum(first**2)) / math.sqrt(sum(second**2))


def test_cross_entropy_of_integer_labels():
    logits, labels = draw(0, B, K), np.array([0, 3, 1, 2, 3])
    expected = [-math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)


@pytest.mark.parametrize("label", [K, -1])
def test_a_label_outside_the_classes_has_no_loss(label):
    logits, labels = jnp.asarray(draw(0, B, K)), jnp.asarray([0, 3, label, 2, 3])
    with pytest.raises(InputError, match=rf"labels must lie in \[0, {K}\), got {min(label, 0)} to {max(label, 3)}"):
        losses.cross_entropy(logits, labels)
    found = np.asarray(jax.jit(losses.cross_entropy)(logits, labels))
    np.testing.assert_array_equal(np.isnan(found), [False, False, True, False, False])
    kept = np.array([0, 1, 3, 4])
    np.testing.assert_allclose(found[kept], losses.cross_entropy(logits[kept], labels[kept]), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_soft_cross_entropy(temperature):
    logits, targets = draw(0, B, K), np.array([softmax(row) for row in draw(1, B, K)], np.float32)
    expected = [
        -sum(t * math.log(p) for t, p in zip(target, softmax(row, temperature), strict=True))
        for row, target in zip(logits, targets, strict=True)
    ]
    found = losses.soft_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if temperature == 1:
        np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(targets)), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_response_kl_has_the_teacher_as_reference(temperature):
    student, teacher = draw(0, B, K), draw(1, B, K)
    expected = [
        temperature**2 * kl(softmax(t, temperature), softmax(s, temperature))
        for s, t in zip(student, teacher, strict=True)
    ]
    found = losses.response_kl(student, teacher, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-7 * temperature**2)
    assert not np.allclose(losses.response_kl(teacher, student, temperature), expected, rtol=1e-3)


def test_response_kl_is_what_torch_computes():
    torch = pytest.importorskip("torch")
    student, teacher, tau = draw(0, B, K), draw(1, B, K), 4.0
    expected = tau**2 * torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(torch.tensor(student) / tau, -1), torch.softmax(torch.tensor(teacher) / tau, -1)
    )
    np.testing.assert_allclose(losses.response_kl(student, teacher, tau).mean(), expected.item(), rtol=1e-4)


def test_response_mix_is_the_weighted_sum():
    student, teacher, labels = draw(0, B, K), draw(1, B, K), np.array([0, 3, 1, 2, 3])
    expected = [
        -0.3 * math.log(softmax(s)[y]) + 9 * kl(softmax(t, 3), softmax(s, 3))
        for s, t, y in zip(student, teacher, labels, strict=True)
    ]
    np.testing.assert_allclose(losses.response_mix(student, teacher, labels, 3.0, 0.3), expected, rtol=1e-4)


def test_logit_distances():
    student, teacher = draw(0, B, K), draw(1, B, K)
    wide = list(zip(student.astype(np.float64), teacher.astype(np.float64), strict=True))
    ones = [sum(abs(a - b) for a, b in zip(s, t, strict=True)) / K for s, t in wide]
    twos = [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / K for s, t in wide]
    np.testing.assert_allclose(losses.logit_l1(student, teacher), ones, rtol=1e-5)
    np.testing.assert_allclose(losses.logit_l2(student, teacher), twos, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_shannon(temperature):
    first, second = draw(0, B, K), draw(1, B, K)
    expected = [naive_js(a, b, temperature) for a, b in zip(first, second, strict=True)]
    found = losses.jensen_shannon(first, second, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found, losses.jensen_shannon(second, first, temperature), rtol=1e-5)


def test_jensen_shannon_stays_in_its_interval_at_the_extremes():
    apart = jnp.array([[1e4, 0.0, -1e4]]), jnp.array([[-1e4, 0.0, 1e4]])
    np.testing.assert_allclose(losses.jensen_shannon(*apart), math.log(2), rtol=1e-6)
    many = draw(3, 1000, K, scale=30)
    close = losses.jensen_shannon(many, many + draw(4, 1000, K, scale=1e-4))
    far = losses.jensen_shannon(many, -many)
    for values in (close, far):
        assert values.min() >= 0
        assert values.max() <= np.float32(math.log(2))
    gradient = jax.grad(lambda a: losses.jensen_shannon(a, apart[1]).sum())(apart[0])
    assert jnp.isfinite(gradient).all()


def test_jensen_shannon_gradient_is_that_of_the_formula():
    first, second = draw(0, 2, K).astype(np.float64), draw(1, 2, K)
    gradient = jax.grad(lambda a: losses.jensen_shannon(a, second).sum())(jnp.asarray(first, jnp.float32))
    step = 1e-5
    for row in range(2):
        for k in range(K):
            up, down = first[row].copy(), first[row].copy()
            up[k] += step
            down[k] -= step
            expected = (naive_js(up, second[row], 1.0) - naive_js(down, second[row], 1.0)) / (2 * step)
            np.testing.assert_allclose(gradient[row, k], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(B, 3, 2, 6), (B, 6)])
def test_hint_loss_through_a_regressor(shape):
    student, teacher = draw(0, *shape), draw(1, *shape[:-1], 4)
    module = losses.HintRegressor(4)
    variables = module.init(jax.random.key(0), student)
    found = losses.hint_loss(student, teacher, lambda v: module.apply(variables, v))
    kernel, bias = (np.asarray(leaf, np.float64) for leaf in _leaves(variables))
    kernel = kernel.reshape(6, 4)
    expected = []
    for v, u in zip(student.reshape(B, -1, 6), teacher.reshape(B, -1, 4), strict=True):
        expected.append(sum(((a @ kernel + bias - b) ** 2).sum() for a, b in zip(v, u, strict=True)) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(losses.hint_loss(teacher, teacher), np.zeros(B))


def _leaves(variables):
    (layer,) = variables["params"].values()
    return layer["kernel"], layer["bias"]


def test_attention_transfer():
    student = [draw(0, B, 3, 2, 6), draw(1, B, 2, 2, 3)]
    teacher = [draw(2, B, 3, 2, 4), draw(3, B, 2, 2, 5)]
    expected = np.zeros(B)
    for s, t in zip(student, teacher, strict=True):
        for b in range(B):
            sides = []
            for maps in (s[b], t[b]):
                q = np.array([sum(float(a) ** 2 for a in pixel) / len(pixel) for line in maps for pixel in line])
                sides.append(q / math.sqrt(sum(q**2)))
            expected[b] += 7.0 / 2 * sum((sides[0] - sides[1]) ** 2)
    np.testing.assert_allclose(losses.attention_transfer(student, teacher, 7.0), expected, rtol=1e-4)
    tiny = [maps * np.float32(1e-8) for maps in student]
    np.testing.assert_allclose(losses.attention_transfer(tiny, teacher, 7.0), expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_relational_distance(scale):
    student, teacher = draw(0, B, 3, scale=scale), draw(1, B, 2, 4)
    s, t = naive_distances(student), naive_distances(teacher.reshape(B, -1))
    expected = sum(huber(s[pair] - t[pair]) for pair in s) / len(s)
    np.testing.assert_allclose(losses.relational_distance(student, teacher), expected, rtol=1e-4)


def test_relational_distance_beyond_the_quadratic_part():
    student, teacher = np.array([[0.0], [0.0], [0.1], [9.0]], np.float32), draw(1, 4, 2)
    s, t = naive_distances(student), naive_distances(teacher)
    assert max(abs(s[pair] - t[pair]) for pair in s) > 1
    expected = sum(huber(s[pair] - t[pair]) for pair in s) / len(s)
    np.testing.assert_allclose(losses.relational_distance(student, teacher), expected, rtol=1e-4)


def test_relational_angle():
    student, teacher = draw(0, B, 3), draw(1, B, 2, 4)
    flat = teacher.reshape(B, -1)
    triplets = [(i, j, k) for i in range(B) for j in range(B) for k in range(B) if len({i, j, k}) == 3]
    expected = sum(huber(naive_angle(student, *t) - naive_angle(flat, *t)) for t in triplets) / len(triplets)
    np.testing.assert_allclose(losses.relational_angle(student, teacher), expected, rtol=1e-4)


PAIRED = {
    "response_kl": losses.response_kl,
    "response_mix": lambda s, t: losses.response_mix(s, t, jnp.zeros(len(s), int)),
    "logit_l1": losses.logit_l1,
    "logit_l2": losses.logit_l2,
    "hint_loss": losses.hint_loss,
    "attention_transfer": lambda s, t: losses.attention_transfer([s[:, None, :, None]], [t[:, None, :, None]]),
    "relational_distance": losses.relational_distance,
    "relational_angle": losses.relational_angle,
    "cross_entropy": losses.cross_entropy,
    "soft_cross_entropy": losses.soft_cross_entropy,
}


@pytest.mark.parametrize("name", PAIRED)
def test_only_the_student_gets_a_gradient(name):
    student, teacher = jnp.asarray(draw(0, B, K)), jax.nn.softmax(jnp.asarray(draw(1, B, K)))
    for_student, for_teacher = jax.grad(lambda s, t: PAIRED[name](s, t).sum(), (0, 1))(student, teacher)
    assert jnp.isfinite(for_student).all()
    assert jnp.abs(for_student).max() > 1e-6
    np.testing.assert_array_equal(for_teacher, 0)


@pytest.mark.parametrize("name", [*PAIRED, "jensen_shannon"])
@pytest.mark.parametrize("case", ["identical", "all rows equal", "zeros", "huge"])
def test_gradients_are_finite_where_formulas_are_not(name, case):
    loss = {**PAIRED, "jensen_shannon": losses.jensen_shannon}[name]
    values = {
        "identical": jnp.asarray(draw(0, B, K)),
        "all rows equal": jnp.ones((B, K)),
        "zeros": jnp.zeros((B, K)),
        "huge": jnp.asarray(draw(0, B, K)) * 1e4,
    }[case]
    value, gradient = jax.value_and_grad(lambda s: loss(s, values).sum())(values)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    if "cross" not in name and "mix" not in name:
        np.testing.assert_allclose(value, 0, atol=1e-5)


@pytest.mark.parametrize("name", ["response_kl", "logit_l1", "logit_l2"])
def test_a_generator_can_ask_for_gradients_through_the_teacher(name):
    student, teacher = jnp.asarray(draw(0, B, K)), jnp.asarray(draw(1, B, K))
    gradient = jax.grad(lambda t: getattr(losses, name)(student, t, through_teacher=True).sum())(teacher)
    assert jnp.abs(gradient).max() > 1e-3


def test_losses_are_computed_in_float32_for_narrow_logits():
    student, teacher = jnp.asarray(draw(0, B, K), jnp.bfloat16), jnp.asarray(draw(1, B, K), jnp.bfloat16)
    found = losses.response_kl(student, teacher, 2.0)
    assert found.dtype == jnp.float32
    wide = losses.response_kl(student.astype(jnp.float32), teacher.astype(jnp.float32), 2.0)
    np.testing.assert_allclose(found, wide, rtol=1e-6)


def test_temperature_may_be_traced():
    student, teacher = draw(0, B, K), draw(1, B, K)
    found = jax.jit(losses.response_kl)(student, teacher, jnp.float32(3))
    np.testing.assert_allclose(found, losses.response_kl(student, teacher, 3.0), rtol=1e-5)


@pytest.mark.parametrize("name", PAIRED)
def test_mismatched_shapes_are_refused(name):
    student, teacher = jnp.zeros((B, K)), jnp.zeros((B + 1, K))
    with pytest.raises(InputError, match=r"shape|equal B"):
        PAIRED[name](student, teacher)


def test_other_refusals():
    logits = jnp.zeros((B, K))
    with pytest.raises(InputError, match="temperature must be positive, got 0"):
        losses.response_kl(logits, logits, 0)
    with pytest.raises(InputError, match="integer labels"):
        losses.cross_entropy(logits, jnp.zeros(B + 1, int))
    with pytest.raises(InputError, match=r"logits must be \(B, K\)"):
        losses.logit_l1(logits[0], logits[0])
    with pytest.raises(InputError, match="at least 3"):
        losses.relational_angle(logits[:2], logits[:2])
    with pytest.raises(InputError, match="at least 2"):
        losses.relational_distance(logits[:1], logits[:1])
    with pytest.raises(InputError, match="0 student maps"):
        losses.attention_transfer([], [])
    with pytest.raises(InputError, match="place 0"):
        losses.attention_transfer([jnp.zeros((B, 2, 2, 3))], [jnp.zeros((B, 3, 2, 3))])
    with pytest.raises(InputError, match=r"\(B, D\), got shape"):
        losses.HintRegressor(3).init(jax.random.key(0), jnp.zeros((B, 2, 3)))
