"""What a finished run looks like: figures, one self-contained page, and tables."""

from dfke_jax.display.numbers import mean_sd
from dfke_jax.report import pages
from dfke_jax.report.html import load, render, render_all
from dfke_jax.report.tables import markdown_table, results_page, table
from dfke_jax.report.words import Comparison, comparisons, verdict

__all__ = [
    "Comparison",
    "comparisons",
    "load",
    "markdown_table",
    "mean_sd",
    "pages",
    "render",
    "render_all",
    "results_page",
    "table",
    "verdict",
]
