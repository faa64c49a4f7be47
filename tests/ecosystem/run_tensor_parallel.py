"""Answers with a target that is cut over several CPU processes; `test_tensor_parallel.py` starts it with torchrun."""

import json
import sys
from pathlib import Path

import torch
from answers import PROMPT, drafted_answer, plain_answer
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from transformers_griffin import GriffinDraftModel


def sampled_answer(target, draft) -> list[int]:
    """Transformers samples with each process's own generator, so all of them need the same seed."""
    torch.manual_seed(0)
    return target.generate(PROMPT, max_new_tokens=20, do_sample=True, assistant_model=draft)[0].tolist()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    target = AutoModelForCausalLM.from_pretrained(
        folder / "target", distributed_config=DistributedConfig(tp_plan="auto")
    ).eval()
    draft = GriffinDraftModel.from_pretrained(folder / "draft").eval()
    fresh = GriffinDraftModel.from_target(target)
    result = {
        "cut": [name for name, weight in target.named_parameters() if type(weight.data).__name__ == "DTensor"],
        "plain": plain_answer(target),
        "drafted": drafted_answer(target, draft),
        "sampled": sampled_answer(target, draft),
        "fresh": [type(weight.data).__name__ for weight in fresh.parameters()],
    }
    rank = torch.distributed.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
