"""
What quantising the mini pair's draft costs and saves: tau, size, and whether every answer is still the target's.

    python trainers/mini_pair/quantised_draft.py
    python trainers/mini_pair/quantised_draft.py --prompts_per_domain 1 --max_new_tokens 16

Target and draft compute in float32, so that answers can be compared token for token. The size is that of the saved
weights; without an entry in QUANTISATIONS they are the shipped bfloat16. No speed: that depends on kernels for the
hardware, which a CPU mostly lacks. The last line of stdout is one JSON object.

Measured on 2 CPU cores (x86-64) with the defaults: the table in README.md beside this file.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import logging

from transformers_griffin.evaluation import answer_prompt, load_prompts, mean_acceptance_length
from transformers_griffin.evaluation.prompts import PACKAGED, encode_chat


MINI = Path(__file__).parents[2] / "examples" / "mini"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
QUANTISATIONS = {
    "none": None,
    "torchao int8": TorchAoConfig(Int8WeightOnlyConfig()),
    "bitsandbytes 8-bit": BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": BitsAndBytesConfig(**NF4),
}


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(MINI / "target")
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype="float32").eval()
    settings = {
        "max_new_tokens": args.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
    }
    questions = [prompt.turns[:1] for prompt in load_prompts(PACKAGED, args.prompts_per_domain)]
    prompts = [torch.tensor([encode_chat(tokenizer, question)]) for question in questions]
    plain = [answer_prompt(target, prompt, **settings).new_tokens for prompt in prompts]
    rows = []
    print("| draft | bytes | tau | identical |\n|---|---|---|---|")
    for name in QUANTISATIONS:
        draft = load_draft(name, "float32")
        answers = [answer_prompt(target, prompt, draft, **settings) for prompt in prompts]
        row = {
            "draft": name,
            "bytes": size_of(name),
            "tau": mean_acceptance_length(answer.acceptance_lengths for answer in answers),
            "identical": sum(answer.new_tokens == tokens for answer, tokens in zip(answers, plain, strict=True)),
            "prompts": len(prompts),
        }
        print(f"| {name} | {row['bytes']:,} | {row['tau']:.3f} | {row['identical']}/{len(prompts)} |", flush=True)
        rows.append(row)
    print(json.dumps({"max_new_tokens": args.max_new_tokens, "drafts": rows}))


def load_draft(name: str, dtype: str):
    config = QUANTISATIONS[name]
    settings = {} if config is None else {"quantization_config": config}
    draft = AutoModel.from_pretrained(MINI / "draft", dtype=dtype, **settings).eval()
    draft.generation_config.draft_level_cost = None  # the same tree in every cycle
    return draft


def size_of(name: str) -> int:
    """Bytes of the saved weights, as shipped: what is not quantised is bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        load_draft(name, "bfloat16").save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts_per_domain", type=int, default=10)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    main(parser.parse_args())
