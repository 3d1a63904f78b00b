"""How answers of several heads are compared."""

import numpy as np

from dfke_jax.experiments.distillation.dfka import joined


def test_what_softmax_does_not_see_of_a_head_does_not_decide_between_heads():
    rng = np.random.default_rng(0)
    heads = {"task0": rng.normal(size=(4, 2)).astype(np.float32), "task1": rng.normal(size=(4, 3)).astype(np.float32)}
    wanted = np.concatenate([logits - logits.mean(1, keepdims=True) for logits in heads.values()], 1)
    shift = {"task0": 7.0, "task1": rng.normal(size=(4, 1)).astype(np.float32)}
    for answers in (heads, {name: logits + shift[name] for name, logits in heads.items()}):
        np.testing.assert_allclose(np.asarray(joined(answers)), wanted, atol=2e-6)
