"""What every method is made of: the contract, the loop, populations, meshes, checkpoints, tracking."""

from dfke_jax.core.checkpoint import Checkpoints, fingerprint, restore, save, writable_directory
from dfke_jax.core.errors import (
    BudgetError,
    CheckpointError,
    DamagedCheckpointError,
    DfkeError,
    EndpointError,
    InputError,
    Interrupted,
    LedgerError,
    MissingDataError,
    NonFiniteError,
    RestartedError,
    UnknownNameError,
    UnknownOutcomeError,
)
from dfke_jax.core.loop import Run, run
from dfke_jax.core.mesh import (
    constrain_samples,
    default_sharding,
    device_mesh,
    initialise_hosts,
    replicate,
    shard,
    split_cpu,
)
from dfke_jax.core.method import Attack, HostMethod, Method, Static, against, method
from dfke_jax.core.population import population
from dfke_jax.core.tracking import JsonLines, TensorBoard, WeightsAndBiases

__all__ = [
    "Attack",
    "BudgetError",
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpointError",
    "DfkeError",
    "EndpointError",
    "HostMethod",
    "InputError",
    "Interrupted",
    "JsonLines",
    "LedgerError",
    "Method",
    "MissingDataError",
    "NonFiniteError",
    "RestartedError",
    "Run",
    "Static",
    "TensorBoard",
    "UnknownNameError",
    "UnknownOutcomeError",
    "WeightsAndBiases",
    "against",
    "constrain_samples",
    "default_sharding",
    "device_mesh",
    "fingerprint",
    "initialise_hosts",
    "method",
    "population",
    "replicate",
    "restore",
    "run",
    "save",
    "shard",
    "split_cpu",
    "writable_directory",
]
