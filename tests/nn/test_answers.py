"""Answers with one head, several heads and places, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.nn.answers import MOST_SHARES, check_one_label, class_metrics, each_head, heads, same_answers
from dfke_jax.nn.losses import response_kl

RNG = np.random.default_rng(2)
PLACES = RNG.normal(size=(4, 2, 3, 5)).astype(np.float32)
KINDS = RNG.normal(size=(4, 3)).astype(np.float32)


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.slow
def test_class_metrics_of_heads_and_places():
    found = class_metrics({"kind": KINDS, "place": PLACES})
    for name, logits in (("kind", KINDS), ("place", PLACES)):
        rows = logits.reshape(-1, logits.shape[-1])
        counts = np.bincount(rows.argmax(-1), minlength=rows.shape[-1]) / len(rows)
        most = np.log(rows.shape[-1])
        np.testing.assert_allclose(found[f"class_entropy/{name}"], entropy(softmax(rows).mean(0)) / most, rtol=1e-5)
        np.testing.assert_allclose(found[f"histogram_entropy/{name}"], entropy(counts) / most, rtol=1e-5)
        assert found[f"largest_class/{name}"] == counts.argmax()
        np.testing.assert_allclose(found[f"largest_share/{name}"], counts.max())
        np.testing.assert_allclose([found[f"class_share/{name}/{k}"] for k in range(len(counts))], counts)
    assert set(class_metrics(KINDS)) >= {"class_entropy", "largest_share", "class_share/2"}
    assert len(class_metrics(np.zeros((2, MOST_SHARES + 1), np.float32))) == 4
    with pytest.raises(InputError, match="K >= 2"):
        class_metrics({"kind": KINDS[:, :1]})


def test_a_loss_of_heads_is_their_sum_and_of_places_their_mean():
    other = {"kind": jnp.asarray(KINDS[::-1]), "place": jnp.asarray(PLACES[::-1])}
    found = each_head(Partial(response_kl))(other, {"kind": jnp.asarray(KINDS), "place": jnp.asarray(PLACES)})

    def kl(t, s):
        p, q = softmax(t), softmax(s)
        return (p * (np.log(p) - np.log(q))).sum(-1)

    np.testing.assert_allclose(found, kl(KINDS, KINDS[::-1]) + kl(PLACES, PLACES[::-1]).mean((1, 2)), rtol=1e-4)


def test_one_label_an_image():
    check_one_label(KINDS, "an impression")
    for other in ({"kind": KINDS}, PLACES):
        with pytest.raises(InputError, match=r"an impression is made for one label .* this teacher answers \w+ \(4"):
            check_one_label(other, "an impression")


def test_names_of_heads():
    assert list(heads(KINDS)) == [""]
    assert list(heads((KINDS, {"a": PLACES}))) == ["0", "1.a"]
    assert same_answers({"a": KINDS}, {"a": KINDS + 1})
    assert not same_answers({"a": KINDS}, {"b": KINDS})
    assert not same_answers(KINDS, KINDS[:, :2])
