"""
Measures the mini pair on its 120 evaluation prompts: plain `generate()` against GRIFFIN, interleaved prompt by prompt.

    python trainers/mini_pair/measure.py --output examples/mini/results.json
    python trainers/mini_pair/measure.py --output /tmp/quick.json --prompts_per_domain 2 --max_new_tokens 32

For every dtype the same prompts run plain, with the paper's tree (59 nodes, 6 levels, 10 wide) and with the draft's
own tree settings; then both once more at temperature 1 (sampled answers differ, so only tau and speed are compared).
After each prompt all modes have run, so a drift of the machine's speed cancels. Finally one run is split into draft,
verify and the rest. The last line of stdout is the results file's content as one JSON object.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from transformers_griffin.decoding.candidate_generator import GriffinCandidateGenerator
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.evaluation import TimedAnswer, answer_prompt, compare


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from demo import DOMAINS, MINI, encode, read_prompts  # the demo is a script, not a package


ROOT = MINI.parents[1]
PAPER_TREE = {"num_assistant_tokens": 59, "draft_tree_depth": 6, "draft_tree_top_k": 10}


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    results: dict = {"provenance": provenance(args), "runs": []}
    for dtype, temperature in [(d, t) for t in args.temperatures for d in args.dtypes]:
        target = AutoModelForCausalLM.from_pretrained(args.target, dtype=dtype).eval()
        draft = AutoModel.from_pretrained(args.draft, dtype=dtype).eval()
        trees = {"own tree": draft.generation_config, "59 nodes": GenerationConfig(**PAPER_TREE)}
        answers = run_modes(args, target, draft, tokenizer, trees, temperature, f"{dtype} T={temperature}")
        for name, tree in trees.items():
            results["runs"].append(
                {"dtype": dtype, "temperature": temperature, "tree": tree_of(tree), "name": name}
                | by_domain(answers["plain"], answers[name])
            )
        if temperature == 0:
            results[f"shares_{dtype}"] = split_cycle(args, target, draft, tokenizer)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)
    print(json.dumps(results))


def run_modes(args, target, draft, tokenizer, trees, temperature: float, label: str) -> dict[str, dict]:
    """Answers of every mode by domain; the order of the modes rotates from prompt to prompt."""
    settings = {"max_new_tokens": args.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    settings |= {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    modes = {"plain": None} | trees
    answers: dict[str, dict[str, list[TimedAnswer]]] = {mode: {domain: [] for domain in DOMAINS} for mode in modes}
    prompts = [(d, p) for d in DOMAINS for p in read_prompts(d, args.prompts_per_domain)]
    for index, (domain, prompt) in enumerate(tqdm([prompts[0], *prompts], desc=label)):
        input_ids = encode(tokenizer, prompt)
        rotated = [*modes][index % len(modes) :] + [*modes][: index % len(modes)]
        for mode in rotated:
            torch.manual_seed(index)
            if modes[mode] is not None:
                draft.generation_config = modes[mode]
            answer = answer_prompt(target, input_ids, None if mode == "plain" else draft, **settings)
            if index > 0:  # the first prompt warms up
                answers[mode][domain].append(answer)
    draft.generation_config = trees["own tree"]
    return answers


def by_domain(plain: dict[str, list[TimedAnswer]], drafted: dict[str, list[TimedAnswer]]) -> dict:
    rows = {domain: compare(plain[domain], drafted[domain]).as_dict() for domain in DOMAINS}
    rows["all"] = compare([*chain(*plain.values())], [*chain(*drafted.values())]).as_dict()
    return {"domains": rows}


def split_cycle(args, target, draft, tokenizer) -> dict[str, float]:
    """Share of the decoding time that drafting, verification and everything else take, with the draft's own tree."""
    seconds = {"draft": 0.0, "verify": 0.0}
    originals = GriffinCandidateGenerator.draft_tree, TargetForward.verify
    GriffinCandidateGenerator.draft_tree = _timed(originals[0], seconds, "draft")
    TargetForward.verify = _timed(originals[1], seconds, "verify")
    try:
        prompts = [p for d in DOMAINS for p in read_prompts(d, min(4, args.prompts_per_domain))]
        total = sum(
            answer_prompt(
                target, encode(tokenizer, p), draft, max_new_tokens=args.max_new_tokens, do_sample=False
            ).wall_seconds
            for p in prompts
        )
    finally:
        GriffinCandidateGenerator.draft_tree, TargetForward.verify = originals
    shares = {name: value / total for name, value in seconds.items()}
    return shares | {"rest": 1 - sum(shares.values())}


def _timed(function, seconds: dict[str, float], name: str):
    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - start
        return result

    return timed


def tree_of(config: GenerationConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in PAPER_TREE}


def provenance(args: argparse.Namespace) -> dict:
    packages = ("torch", "transformers", "transformers-griffin")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit or None,
        "device": f"CPU, {os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
        "arguments": {name: str(value).removeprefix(f"{ROOT}/") for name, value in vars(args).items()},
    }


def print_table(results: dict) -> None:
    print("| dtype | T | tree (nodes/levels/width) | domain | identical | tau | SR | cycle cost | repeated 4-grams |")
    print("|---|---|---|---|---|---|---|---|---|")
    for run in results["runs"]:
        tree = "/".join(str(value) for value in run["tree"].values())
        for domain, row in run["domains"].items():
            same = f"{row['num_identical']}/{row['num_prompts']}" if run["temperature"] == 0 else "-"
            print(
                f"| {run['dtype']} | {run['temperature']:g} | {tree} | {domain} | {same} | {row['tau']:.2f} | "
                f"{row['speedup_ratio']:.2f} | {row['cycle_cost']:.2f} | {row['repeated_4grams']:.0%} |"
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(MINI / "target"))
    parser.add_argument("--draft", default=str(MINI / "draft"))
    parser.add_argument("--output", type=Path, default=MINI / "results.json")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--prompts_per_domain", type=int, default=40)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
