"""White boxes of other libraries' models: Flax Linen and NNX, Equinox, PyTorch; each checked
against the original.
"""

from dfke_jax.nn.adapters.adapted import AdaptedClassifier, adapted
from dfke_jax.nn.adapters.equinox import from_equinox
from dfke_jax.nn.adapters.linen import from_linen
from dfke_jax.nn.adapters.nnx import from_nnx
from dfke_jax.nn.adapters.torch import from_torch

__all__ = ["AdaptedClassifier", "adapted", "from_equinox", "from_linen", "from_nnx", "from_torch"]
