"""Extraction as removal: the thief never touches the marked network and keeps a clone made from its answers."""

import functools
from typing import TYPE_CHECKING, Any

from dfke_jax.experiments.attacks import ExtractionSettings, Kind, Site, paid
from dfke_jax.experiments.extraction import DFME, DFMS, DISGUIDE, DUAL_STUDENTS, MAZE, MEGEX
from dfke_jax.experiments.pool_extraction import (
    ACTIVE_THIEF,
    BANDIT,
    COPYCAT,
    DISSECTOR,
    JBDA,
    KNOCKOFF,
    PoolExtractionSettings,
    image_pool,
)
from dfke_jax.experiments.registry import recipe
from dfke_jax.experiments.workbench import Workbench
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal import Removed

if TYPE_CHECKING:
    from dfke_jax.experiments.removal import RemovalSettings

EXTRACTIONS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        KNOCKOFF, BANDIT, ACTIVE_THIEF, COPYCAT, DISSECTOR, JBDA, DFME, MAZE, MEGEX, DISGUIDE, DUAL_STUDENTS, DFMS,
    )
}  # fmt: skip
"""Attacks by name. Each runs as its recipe of that name (with hyphens) does on the same data set."""


def extraction_settings(config: "RemovalSettings", name: str) -> ExtractionSettings:
    """The recipe's settings of an attack.

    Args:
      config: of the removal recipe. name: of `EXTRACTIONS`.

    Raises:
      InputError: for a budget that does not pay for one iteration.
    """
    own = recipe(name.replace("_", "-")).settings(config.dataset, seed=config.seed, teacher=config.teacher)
    own.attack.with_budget(config.extraction_rows - EXTRACTIONS[name].opening_rows(own))
    return own


class Extractions:
    """The extraction attacks of one run of the removal recipe.

    Attributes:
      config: of the recipe. bench: of the run.
    """

    def __init__(self, config: "RemovalSettings", bench: Workbench):
        self.config, self.bench = config, bench
        self._pool = functools.cache(self._made_pool)

    def clone(self, name: str, stage: str, seed: int, victim: Classifier) -> Removed:
        """What an attack makes of a network, as a stage that resumes; its rows are counted by a ledger.

        Args:
          name: of `EXTRACTIONS`. stage: under which it is kept; one a victim. seed: of the run. victim: the network.

        Returns:
          The clone, with its ``budget`` among the settings.
        """
        kind, bench, rows = EXTRACTIONS[name], self.bench, self.config.extraction_rows
        own = extraction_settings(self.config, name)
        first = kind.opening_rows(own)
        settings = own.attack.with_budget(rows - first)
        pool = self._pool(own.pool_dataset) if isinstance(own, PoolExtractionSettings) else None
        clone = bench.network(self.config.teacher)
        site = Site(own, settings, own.answers, clone, bench, seed, pool, where=f"{stage}/")
        oracle, updates = kind.oracle(victim, own), kind.updates(settings)
        if kind.opening:
            opened, more = kind.opening(site, oracle)
            site, updates = site._replace(opened=opened), updates + more
        # the draws of the attack's own recipe at this budget, whatever the mark
        state, counts = paid(kind, site, kind.attack(site), oracle, rows - first, stage, f"{name}_{rows}/attack")
        learnt = kind.read(clone, state)
        budget = {**counts, "victim_rows": counts["victim_rows"] + first, "clone_updates": updates}
        return Removed(learnt, learnt, name, f"a clone by {kind.label}", {"budget": budget})

    def _made_pool(self, dataset: str) -> Any:
        chosen = PoolExtractionSettings(dataset=self.config.dataset, seed=self.config.seed, pool_dataset=dataset)
        return image_pool(chosen, self.bench, 2 * self.config.extraction_rows)


__all__ = ["EXTRACTIONS", "Extractions", "extraction_settings"]
