"""Recurrent networks for sequences that come as images: rows are moments, columns what is heard at
each.
"""

from typing import Any

import flax.linen as nn

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.layers import head, record


class LSTM(nn.Module):
    """One LSTM over the rows of (T, F, 1), a dense layer with ReLU on its last state, and the head.

    Spectrograms are images whose height is time, so that a `Classifier` of this network is like any
    other. 379,274 parameters on 125×80×1.

    Attributes:
      num_classes: K.
      cells: width of the LSTM.
      units: of the dense layer.

    Records ``state_middle`` and ``state_last``, the hidden states (B, cells) at row ⌊T/2⌋ and at
    the last, and ``dense1``.

    Source: the speech-command network of Jia et al., Entangled Watermarks, 2021.
    Deviation: forget gates begin without the bias of one that TensorFlow's basic cell adds.
    """

    num_classes: int = 10
    cells: int = 256
    units: int = 128

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if x.ndim != 4 or x.shape[-1] != 1:
            raise InputError(
                f"a sequence network takes (B, time, features, 1), got an array of shape {x.shape}"
            )
        # (B, T, cells)
        states: Any = nn.RNN(nn.OptimizedLSTMCell(self.cells, name="cell"), name="lstm")(x[..., 0])
        record(self, "state_middle", states[:, states.shape[1] // 2])
        last = record(self, "state_last", states[:, -1])
        x = nn.relu(record(self, "dense1", nn.Dense(self.units, name="dense1")(last)))
        return head(self.num_classes)(record(self, "features", x))


__all__ = ["LSTM"]
