"""Strict settings for every test: four CPU devices, no silent broadcasting between ranks, compiled programs kept on disk."""

import os
import tempfile
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")
# Most of a cold run is compilation: no optimisation by LLVM, and the older, quicker emitters of machine code where jaxlib still
# has them (a flag that it does not know ends the process). The programs, as XLA arranges and fuses them, are the same; the
# suite takes less than half the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else "")
    # other machines than this one: narrower vectors (AVX2, SSE4_2), which round elsewhere; see test_machines.py
    + (f" --xla_cpu_max_isa={os.environ['DFKE_TEST_ISA']}" if os.environ.get("DFKE_TEST_ISA") else ""),
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", int(os.environ.get("DFKE_TEST_DEVICES", "4")))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"dfke-test-cache-{jax.__version__}")
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def getkey():
    """A function that returns a fresh key at every call, the same sequence in every run."""
    count = iter(range(1_000_000))

    def draw():
        return jax.random.fold_in(jax.random.key(20), next(count))

    return draw


@pytest.fixture(scope="session")
def four():
    """Four devices, or a skip with the reason."""
    if jax.device_count() < 4:
        pytest.skip("four devices are needed")
    return jax.devices()[:4]


@pytest.fixture(scope="session")
def data_dir():
    """The directory of real data sets, or a skip with the reason."""
    path = os.environ.get("DFKE_DATA_DIR")
    if not path:
        pytest.skip("DFKE_DATA_DIR is not set: it names the directory that holds tfds/mnist and the other real sets")
    return Path(path)


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Compiled programs of one module do not stay mapped while the next runs."""
    yield
    jax.clear_caches()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays in one process, so that what its tests share is computed and compiled once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None
