"""Device meshes and the two axes that runs are sharded over: independent models, and samples."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import PyTree


def device_mesh(
    models: int | None = None, samples: int | None = None, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with axes ``models`` (independent runs) and ``samples`` (rows of one batch).

    Args:
      models: devices along the population axis. With both sizes None all devices go to the samples
        axis.
      samples: devices along the sample axis. A size left None takes what the other leaves.
      devices: devices to use; all visible ones by default, those of other hosts included.

    Raises:
      InputError: when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if min(1 if size is None else size for size in (models, samples)) < 1:
        raise InputError(f"mesh sizes must be at least 1, got {models} models × {samples} samples")
    if models is None:
        models = 1 if samples is None else max(1, len(devices) // samples)
    if samples is None:
        samples = max(1, len(devices) // models)
    if math.prod((models, samples)) != len(devices):
        raise InputError(
            f"a mesh of {models} models × {samples} samples needs {models * samples} devices, got "
            f"{len(devices)}"
        )
    return jax.make_mesh(
        (models, samples),
        ("models", "samples"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def shard(tree: PyTree, mesh: Mesh, axis: str) -> PyTree:
    """Places a tree with its leading axis split over one mesh axis; leaves that do not divide are
    replicated.

    Args:
      tree: pytree of arrays.
      mesh: from `device_mesh`.
      axis: ``models`` or ``samples``.
    """
    if axis not in mesh.axis_names:
        raise InputError(f"the mesh has axes {mesh.axis_names}, not {axis!r}")
    size = mesh.shape[axis]

    def place(leaf: jax.Array) -> jax.Array:
        splits = leaf.ndim > 0 and leaf.shape[0] % size == 0
        return jax.device_put(
            leaf, NamedSharding(mesh, PartitionSpec(axis) if splits else PartitionSpec())
        )

    return jax.tree.map(place, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places a full copy of a tree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def constrain_samples(array: jax.Array) -> jax.Array:
    """Inside a program: asks for the leading axis of `array` to be split over the sample axis of
    the mesh in use.

    The mesh is that of ``jax.set_mesh``. Without one, or where the axis does not divide, nothing
    happens.
    """
    if sample_devices(array.shape[0]) == 1:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec("samples"))


def sample_devices(rows: int) -> int:
    """Over how many devices `constrain_samples` splits so many rows: 1 without a mesh, or where it
    does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if (
        mesh.empty
        or dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get("samples") != AxisType.Auto
    ):
        return 1
    return 1 if rows % mesh.shape["samples"] else mesh.shape["samples"]


def on_own_samples(
    function: Callable, shared: PyTree, arrays: PyTree, out_specs: Any = None
) -> Any:
    """``function(shared, arrays)``, where every device of the sample axis works through its own
    rows alone.

    Without a mesh, or where the axis does not divide, it is one call with all rows. What the
    function sums over rows it must sum over devices too.

    Args:
      function: treats rows alone, but for such sums.
      shared: what all devices need. arrays: leaves (B, ...).
      out_specs: of the results; by default all of them have rows on their leading axis.
    """
    split = PartitionSpec("samples")
    if sample_devices(jax.tree.leaves(arrays)[0].shape[0]) == 1:
        return function(shared, arrays)
    specs = split if out_specs is None else out_specs
    return jax.shard_map(
        function, in_specs=(PartitionSpec(), split), out_specs=specs, check_vma=False
    )(shared, arrays)


def default_sharding() -> Any:
    """Where values live that nothing else places: on every device of the mesh in use, or on the
    first device.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(mesh, PartitionSpec())


def split_cpu(devices: int | None = None) -> None:
    """Makes JAX see the CPU as several devices; call it before anything else touches a device.

    Programs that split samples over devices are faster so: every core works through rows of its
    own, where one device would have its threads meet after every operation. Accelerators are not
    affected.

    Args:
      devices: how many. By default one per core, up to four, rounded down to a power of two, unless
        the user has decided already (``jax_num_cpu_devices`` or
        ``--xla_force_host_platform_device_count``) or JAX has started.

    Raises:
      InputError: for a number below one, or one that comes after JAX has started.
    """
    if devices is not None and devices < 1:
        raise InputError(f"the number of devices must be at least 1, got {devices}")
    chosen = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if devices is None:
        if chosen > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", 1 << min(cores, 4).bit_length() - 1)
    elif devices != chosen:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError as error:
            raise InputError(f"{devices} devices come too late: JAX has already started") from error


def initialise_hosts(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the hosts of a multi-host run; call it before anything else touches a device.

    On TPU slices, Slurm and Open MPI all arguments are found by themselves.

    Args:
      coordinator: ``host:port`` of process 0.
      processes: how many processes take part.
      process: the index of this one.
    """
    jax.distributed.initialize(coordinator, processes, process)


__all__ = [
    "constrain_samples",
    "default_sharding",
    "device_mesh",
    "initialise_hosts",
    "on_own_samples",
    "replicate",
    "sample_devices",
    "shard",
    "split_cpu",
]
