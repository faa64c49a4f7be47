"""What only a GPU can show. `trainers/gpu_check.sh` runs these; without a GPU there is nothing to test."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from transformers_griffin.decoding import kernels
from transformers_griffin.evaluation.synthetic import measure_synthetic
from transformers_griffin.evaluation.synthetic_pair import build_pair


MINI = Path(__file__).parents[1] / "examples" / "mini"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=[False, True], ids=["PyTorch", "kernels"])
def with_and_without_kernels(request, monkeypatch):
    monkeypatch.setattr(kernels, "_enabled", request.param)


def load_pair(dtype):
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype=dtype).eval().cuda()
    return target, AutoModel.from_pretrained(MINI / "draft", dtype=dtype).eval().cuda()


@pytest.fixture(scope="module")
def pair():
    """
    In float64, in which a forward of one token and one of sixty part nowhere. The attention kernel does not read it:
    `decoding/test_decoding_with_kernels.py` runs that one, in float32.
    """
    return load_pair(torch.float64)


@pytest.mark.usefixtures("with_and_without_kernels")
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static", "disable_compile": True}])
@pytest.mark.parametrize("tree", [(59, 6, 10), (10, 5, 2), (4, 4, 1)])
def test_greedy_answers_on_a_gpu_are_the_targets_own(pair, tree, cache):
    assert_exact(*pair, tree, **cache)


@pytest.mark.usefixtures("with_and_without_kernels")
@pytest.mark.parametrize("prompt", [{}, {"prefill_chunk_size": 8}], ids=["whole", "in chunks"])
def test_compiled_cycles_on_a_gpu_give_the_targets_own_answers(pair, prompt):
    """With everything that is default on a GPU: compiled code, captured as graphs. The prompts have 20 tokens."""
    assert_exact(*pair, (59, 6, 10), cache_implementation="static", **prompt)


@pytest.mark.usefixtures("with_and_without_kernels")
def test_compiled_cycles_in_a_dtype_of_the_attention_kernel_give_the_targets_own_answers():
    """No choice of the target for these prompts is closer than 1e-3 in float32."""
    assert_exact(*load_pair(torch.float32), (59, 6, 10), cache_implementation="static")


def assert_exact(target, draft, tree, **cache):
    draft.generation_config.update(
        **dict(zip(("num_assistant_tokens", "draft_tree_depth", "draft_tree_top_k"), tree, strict=True))
    )
    for start in (300, 400, 500):
        prompt = torch.arange(start, start + 20, device="cuda").unsqueeze(0)
        settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 64, "do_sample": False}
        plain = target.generate(prompt, **settings, pad_token_id=0)
        drafted = target.generate(
            prompt,
            **settings,
            pad_token_id=0,
            assistant_model=draft,
            **cache,
            return_dict_in_generate=True,
        )
        assert torch.equal(plain, drafted.sequences)
        assert max(drafted.acceptance_lengths[0]) > 1


def test_random_pairs_are_made_on_the_gpu():
    before = torch.cuda.memory_allocated()
    target, draft = build_pair("tiny", torch.bfloat16, torch.device("cuda"))
    assert {parameter.device.type for model in (target, draft) for parameter in model.parameters()} == {"cuda"}
    assert torch.cuda.memory_allocated() > before
    assert all(parameter.isfinite().all() for model in (target, draft) for parameter in model.parameters())


@pytest.mark.usefixtures("with_and_without_kernels")
def test_the_host_waits_once_a_cycle_and_memory_is_measured():
    results = measure_synthetic(
        "tiny", torch.bfloat16, torch.device("cuda"), prompt_lengths=(64,), compiles=True, new_tokens=40
    )
    assert [row.is_compiled for row in results.rows] == [False, True]
    for row in results.rows:
        assert row.host_waits_per_cycle == 1
        assert 0 < row.verify_seconds < row.cycle_seconds
        assert 0 < row.plain_memory_bytes < row.draft_memory_bytes
