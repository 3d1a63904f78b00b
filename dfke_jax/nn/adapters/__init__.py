"""White boxes of other libraries' models: Flax Linen and NNX, Equinox, PyTorch; each checked
against the original.
"""

from dfke_jax.nn.adapters.adapted import AdaptedClassifier, adapted
from dfke_jax.nn.adapters.equinox_module import from_equinox
from dfke_jax.nn.adapters.linen_module import from_linen
from dfke_jax.nn.adapters.nnx_module import from_nnx
from dfke_jax.nn.adapters.torch_module import from_torch

__all__ = ["AdaptedClassifier", "adapted", "from_equinox", "from_linen", "from_nnx", "from_torch"]
