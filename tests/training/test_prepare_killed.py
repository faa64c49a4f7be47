"""`griffin prepare` is really killed, at every step of its writing, and continued: the bytes are those of one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transformers_griffin.training.shards import load_shards


# One interpreter with warm imports; every run is a fork of it. Each round kills a run at one call, shows that what it
# left is not read, kills its continuation too, and lets the third run finish.
SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import prepare_helpers as helpers
from datasets.arrow_writer import ArrowWriter
from pathlib import Path
from transformers_griffin.training.shards import load_shards

def forked(run, path, moment=None):
    process = os.fork()
    if process == 0:
        if moment is not None:
            helpers.kill_at_call(*moment)
        run(path)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def rounds(run, kind, base, moments):
    assert forked(run, base / "whole") == 0
    whole = helpers.files_of(base / "whole")
    for owner, name, number in moments:
        path = base / f"{name}-{number}"
        killed = forked(run, path, (owner, name, number))
        try:
            load_shards(path, kind)
            refused = ""
        except (FileNotFoundError, ValueError) as error:
            refused = str(error)
        left = sorted(file.name for file in path.iterdir())
        again = forked(run, path, (os, "replace", 2))
        finished = forked(run, path)
        yield [kind, name, number, killed, refused, left, again, finished, helpers.files_of(path) == whole]

base = Path(sys.argv[2])
few = [(os, "replace", 3), (os, "fsync", 5), (ArrowWriter, "write_batch", 2)]
more = [(os, "replace", 1), (os, "replace", 2), (os, "fsync", 4), (os, "fsync", 8), (ArrowWriter, "finalize", 2)]
results = [
    *rounds(helpers.run_features, "features", base / "features", few + more),
    *rounds(helpers.run_answers, "conversations", base / "answers", few),
]
print(json.dumps(results))
"""


def test_a_run_killed_at_any_step_continues_to_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 11
    for kind, name, number, killed, refused, left, again, finished, is_same in results:
        moment = f"{kind} killed at call {number} of {name}"
        assert killed == -signal.SIGKILL, moment
        assert "has no manifest.json" in refused or "is not complete" in refused, moment
        assert any(file.endswith(".tmp") for file in left) or name == "fsync", moment
        assert again == -signal.SIGKILL, moment
        assert finished == 0, moment
        assert is_same, moment


@pytest.mark.slow
@pytest.mark.parametrize(("run", "kind"), [("run_features", "features"), ("run_answers", "conversations")])
def test_a_run_killed_from_outside_at_any_time_continues_to_the_same_bytes(tmp_path, run, kind):
    from prepare_helpers import files_of

    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import prepare_helpers as helpers; "
    script += f"from pathlib import Path; print('ready', flush=True); helpers.{run}(Path(sys.argv[1]))"

    def started(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    start = time.monotonic()
    assert started(tmp_path / "whole").wait() == 0
    duration = time.monotonic() - start
    for fraction in (0.1, 0.4, 0.6, 0.8, 0.9):
        process = started(tmp_path / "killed")
        time.sleep(fraction * duration / 2)
        process.kill()
        process.wait()
    assert started(tmp_path / "killed").wait() == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert len(load_shards(tmp_path / "killed", kind)) > 0
