"""The interpreter takes some programs that no GPU would: the kernels also compile, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "shared_memory"), [(80, 166_912), (90, 232_448)])
def test_kernels_compile_and_fit_the_shared_memory(capability, shared_memory):
    """A100 and H100."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout.splitlines()[-1])
    assert len(taken) == 7
    assert max(taken.values()) <= shared_memory
