"""The script that times the kernels on a GPU runs where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[3] / "trainers" / "benchmark_kernels.py"


@pytest.mark.slow
def test_benchmark_runs_in_the_interpreter_and_invents_no_figures():
    done = subprocess.run([sys.executable, str(SCRIPT), "--interpret"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])["measured"]
    assert set(measured) == {"tree_attention", "compaction", "accept_walk", "growth", "int8_head"}
    assert all(row["speedup"] is None and row["kernel_ms"] is None for row in measured.values())
    assert measured["tree_attention"]["largest_difference"] < 1e-5
    assert measured["int8_head"]["largest_difference"] < 1e-4
