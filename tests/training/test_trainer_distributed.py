"""Two gloo processes on the CPU train like one with twice the batch, with DDP and with FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_distributed import train
from trainer_helpers import assert_same_weights

from transformers_griffin import GriffinDraftModel
from transformers_griffin.training.wrapping import shard_as_one_unit


# All passes from the first step. With alignment masks, a pass's share of positions would depend on the batch.
METHOD = {"num_passes": 3, "num_passes_schedule": [0, 0], "alignment_top_k": 0}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="ddp", marks=pytest.mark.slow),
        pytest.param(
            {"gradient_accumulation_steps": 2, "activation_checkpointing": True},
            id="ddp-accumulated",
            marks=pytest.mark.slow,
        ),
        pytest.param(FSDP, id="fsdp2", marks=pytest.mark.slow),
        pytest.param(
            FSDP | {"gradient_accumulation_steps": 2, "activation_checkpointing": True},
            id="fsdp2-accumulated",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_train_like_one_with_twice_the_batch(tmp_path, settings):
    """Losses, gradient norms, weights and tau agree; so does a run resumed in the middle; from_pretrained reads it."""
    script = str(Path(__file__).parent / "run_distributed.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    distributed = METHOD | settings | {"per_device_train_batch_size": 2}
    subprocess.run(
        [*launch, str(tmp_path), json.dumps(distributed)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=550,
    )
    two = json.loads((tmp_path / "result.json").read_text())

    is_sharded = "fsdp" in settings
    alone = {name: value for name, value in settings.items() if name not in FSDP}
    one = train(str(tmp_path / "one"), METHOD | alone | {"per_device_train_batch_size": 4})
    assert two["whole"]["log"] == [pytest.approx(entry, rel=1e-4, abs=1e-6) for entry in one["log"]]
    assert two["resumed"] == two["whole"]
    assert two["whole"]["tau"] == one["tau"]
    assert two["whole"]["kinds"] == {"draft": "DTensor" if is_sharded else "Tensor", "target": "Tensor"}
    expected = dict(GriffinDraftModel.from_pretrained(tmp_path / "one").named_parameters())
    for run in ("whole", "resumed"):
        loaded = GriffinDraftModel.from_pretrained(tmp_path / run)
        assert loaded.config.architectures == ["GriffinDraftModel"]
        assert_same_weights(dict(loaded.named_parameters()), expected)


@pytest.mark.parametrize(("version", "activation_checkpointing"), [(1, False), (2, True)])
def test_fsdp_settings_that_drafts_cannot_have_are_refused(version, activation_checkpointing):
    plugin = SimpleNamespace(fsdp_version=version, activation_checkpointing=activation_checkpointing)
    with pytest.raises(
        ValueError, match=f"version {version} with activation checkpointing {activation_checkpointing}"
    ):
        shard_as_one_unit(plugin)
