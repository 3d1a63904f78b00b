"""The version of the package, and nothing else, so that builds need not import JAX."""

__version__ = "0.1.0"
