"""Data-free knowledge extraction in JAX.

The sub-packages follow the flow of a run: ``core`` (methods and the loop that runs them), ``nn`` (networks),
``data``, ``synthesis`` (batch synthesis), ``distillation`` (methods), ``evaluation``, ``experiments`` (recipes),
``report``. Import what you need from them, e.g. ``from dfke_jax.synthesis import optimise_noise``.
"""

from dfke_jax._version import __version__

__all__ = ["__version__"]
