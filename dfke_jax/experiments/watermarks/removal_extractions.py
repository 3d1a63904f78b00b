"""Extraction as removal: the thief never touches the marked network and keeps a clone made from its answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.settings import Settings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.attacks import AttackRecipe, AttackRun, ExtractionSettings, extracted
from dfke_jax.experiments.extraction.generative import DFME, DFMS, DISGUIDE, DUAL_STUDENTS, MAZE, MEGEX
from dfke_jax.experiments.extraction.pool import (
    ACTIVE_THIEF,
    BANDIT,
    COPYCAT,
    DISSECTOR,
    JBDA,
    KNOCKOFF,
    ImagePool,
    PoolExtractionSettings,
    image_pool,
)
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal import Removed

EXTRACTIONS: dict[str, AttackRecipe] = {
    attack_recipe.name: attack_recipe
    for attack_recipe in (
        KNOCKOFF, BANDIT, ACTIVE_THIEF, COPYCAT, DISSECTOR, JBDA, DFME, MAZE, MEGEX, DISGUIDE, DUAL_STUDENTS, DFMS,
    )
}  # fmt: skip
"""Attacks by name. Each runs as its recipe of that name (with hyphens) does on the same data set."""


@dataclasses.dataclass(frozen=True)
class TakenSettings(Settings):
    """What attacks by extraction are given by the removal recipe."""

    extraction_rows: int = 20_000
    """Rows that each attack by extraction may ask the marked network."""
    extractions: dict[str, Any] = dataclasses.field(init=False, default_factory=dict, hash=False)
    """What attacks by extraction take from the presets of their own recipes; follows from the other settings."""


def extraction_settings(config: TakenSettings, name: str) -> ExtractionSettings:
    """The recipe's settings of an attack.

    Args:
      config: of the removal recipe. name: of `EXTRACTIONS`.

    Raises:
      InputError: for a budget that does not pay for one iteration.
    """
    own = recipe(name.replace("_", "-")).settings(config.dataset, seed=config.seed)
    own.attack.with_budget(config.extraction_rows - EXTRACTIONS[name].opening_rows(own))
    return own


def taken_settings(config: TakenSettings, attacks: Sequence[str]) -> dict[str, Any]:
    """What the attacks of a removal run by extraction take from their recipes' presets, by attack.

    Args:
      config: of the removal recipe. attacks: names; those that are not of `EXTRACTIONS` take nothing.

    Returns:
      A JSON-able dictionary of those settings alone that an attack reads; data, networks and seeds are
      the removal's own.
    """
    common = {field.name for field in dataclasses.fields(ExtractionSettings)} - {"attack"}
    found = {}
    for name in dict.fromkeys(name for name in attacks if name in EXTRACTIONS):
        own = extraction_settings(config, name)
        attack = own.attack.with_budget(config.extraction_rows - EXTRACTIONS[name].opening_rows(own))
        settings = dataclasses.asdict(dataclasses.replace(own, attack=attack))
        found[name] = {field: value for field, value in settings.items() if field not in common}
    return found


class Extractions:
    """The extraction attacks of one run of the removal recipe.

    Attributes:
      config: of the recipe. bench: of the run.
    """

    def __init__(self, config: TakenSettings, bench: Workbench):
        self.config, self.bench = config, bench
        self._pools: dict[str, ImagePool] = {}

    def clone(self, name: str, stage: str, seed: int, victim: Classifier) -> Removed:
        """What an attack makes of a network, as a stage that resumes; its rows are counted by a ledger.

        Args:
          name: of `EXTRACTIONS`. stage: under which it is kept; one a victim. seed: of the run. victim: the network.

        Returns:
          The clone, with its ``budget`` among the settings.
        """
        attack_recipe, bench, rows = EXTRACTIONS[name], self.bench, self.config.extraction_rows
        own = extraction_settings(self.config, name)
        settings = own.attack.with_budget(rows - attack_recipe.opening_rows(own))
        pool = None
        if isinstance(own, PoolExtractionSettings):
            if own.pool_dataset not in self._pools:
                self._pools[own.pool_dataset] = image_pool(own, bench, 2 * rows)
            pool = self._pools[own.pool_dataset]
        clone = bench.network(self.config.teacher)
        run = AttackRun(own, settings, own.answers, clone, bench, seed, pool, where=f"{stage}/")
        # the draws of the attack's own recipe at this budget, whatever the mark
        _, state, counts, updates = extracted(
            attack_recipe, run, attack_recipe.attack, victim, rows, stage, f"{name}_{rows}/attack"
        )
        learnt = attack_recipe.read(clone, state)
        return Removed(
            learnt, learnt, name, f"a clone by {attack_recipe.label}", {"budget": {**counts, "clone_updates": updates}}
        )


__all__ = ["EXTRACTIONS", "Extractions", "TakenSettings", "extraction_settings", "taken_settings"]
