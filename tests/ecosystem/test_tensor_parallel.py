"""Tensor parallel targets: two gloo processes give the tokens of one, and every process the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from answers import drafted_answer, plain_answer
from run_tensor_parallel import sampled_answer

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_every_process_answers_like_one_alone(tmp_path, tied):
    """Embedding and LM head, which the draft borrows, are cut too; the draft itself is whole everywhere."""
    target = tiny_llama(vocab_size=62, tie_word_embeddings=tied)  # of even size, to be cut in two
    draft = GriffinDraftModel.from_target(target).eval()
    target.save_pretrained(tmp_path / "target")
    draft.save_pretrained(tmp_path / "draft")
    script = str(Path(__file__).with_name("run_tensor_parallel.py"))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, tmp_path],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"} <= set(first["cut"])
    assert ("lm_head.weight" in first["cut"]) == (not tied)
    assert first["plain"] == plain_answer(target)
    assert first["drafted"] == list(drafted_answer(target, draft))
    assert first["sampled"] == sampled_answer(target, draft)
    assert set(first["fresh"]) == {"Tensor"}
