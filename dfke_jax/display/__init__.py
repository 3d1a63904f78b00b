"""What tables and figures of results share: axes and colours, GitHub tables, numbers in words."""

from dfke_jax.display.numbers import decimal, mean_sd, number, signed, spread
from dfke_jax.display.tables import Table, github_table

__all__ = ["Table", "decimal", "github_table", "mean_sd", "number", "signed", "spread"]
