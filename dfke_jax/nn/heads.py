"""One network with several heads: a question of its own for each."""

import flax.linen as nn

from dfke_jax.core.types import Array


class Heads(nn.Module):
    """A trunk whose last layer is cut into heads: (B, K_1 + … + K_n) -> {"task0": (B, K_1), …}.

    A dense layer of all classes is a dense layer a head side by side.

    Attributes:
      network: with as many classes as all heads together. sizes: K_1, ..., K_n.
    """

    network: nn.Module
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
        logits, answers, start = self.network(x, train=train), {}, 0
        for i, size in enumerate(self.sizes):
            answers[f"task{i}"] = logits[:, start : start + size]
            start += size
        return answers


__all__ = ["Heads"]
