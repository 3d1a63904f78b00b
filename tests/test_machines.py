"""The suite as other machines run it: narrower vectors, which round elsewhere, and other numbers of devices.

``pytest -m machines`` takes the whole suite once for each, half an hour on two cores.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MACHINES = [("AVX2", 1), ("SSE4_2", 2), ("", 8)]


@pytest.mark.machines
@pytest.mark.parametrize(("instructions", "devices"), MACHINES)
def test_the_suite_passes_on(instructions, devices):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"DFKE_TEST_ISA": instructions, "DFKE_TEST_DEVICES": str(devices)}
    command = [sys.executable, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
