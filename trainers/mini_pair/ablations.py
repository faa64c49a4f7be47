"""
The paper's ablations on the mini target: one draft a row, equal data, equal tokens, equal seeds.

    python trainers/mini_pair/ablations.py --target_dir runs/mini_pair/calm/target
    python trainers/mini_pair/ablations.py --rows griffin hass --max_steps 20 --prompts_per_domain 2

First the target's features of the training blocks and its own answers to the evaluation prompts are written; then
every row is trained and its draft plays these answers again (`evaluation/replay.py`: the acceptance lengths of real
tree decoding, exactly). What is done is skipped, so the script may be killed and started again. After a first call
with `--rows` alone, which writes features and answers, `--worker 0 --num_workers 2` and `--worker 1 --num_workers 2`
share the rows. `ablations_report.py` makes the tables.

Every row is trained by the recipe of `train_draft.py` with the settings of [`ROWS`] in place of its own. Passes join
in equal parts of the run, in every row.

Measured: README.md in ablations/.
"""

import argparse
import json
import os
import time
from pathlib import Path

import datasets
import torch
from train_draft import make_optimizer, make_parser, training_arguments
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging

from transformers_griffin import GriffinDraftModel
from transformers_griffin.evaluation import KnownAnswers, know_answers, load_prompts, replay_acceptance
from transformers_griffin.evaluation.prompts import PACKAGED, encode_chat
from transformers_griffin.evaluation.provenance import provenance
from transformers_griffin.modeling_griffin import DEFAULT_TREE
from transformers_griffin.training import GriffinTrainer, load_features, prepare_features


CONCAT = {"fusion": "concat"}
SINGLE = {"dual_head": False}

# name -> (the draft's configuration, the recipe's settings)
ROWS: dict[str, tuple[dict, dict]] = {
    "griffin": ({}, {}),
    "hass": (CONCAT | SINGLE, {"objective": "hass"}),
    "eagle2": (CONCAT | SINGLE, {"objective": "eagle"}),
    "fspad": (CONCAT, {"objective": "eagle"}),  # like it: one head for the feature, one for the token
    "without_tat": ({}, {"num_passes": 1}),
    "without_tad": (CONCAT | SINGLE, {}),
    "without_both": (CONCAT | SINGLE, {"num_passes": 1}),
    "top_none": ({}, {"alignment_top_k": 0}),
    "top_1": ({}, {"alignment_top_k": 1}),
    "top_5": ({}, {"alignment_top_k": 5}),
    "top_10": ({}, {"alignment_top_k": 10}),
    "passes_2": ({}, {"num_passes": 2}),
    "passes_4": ({}, {"num_passes": 4}),
    "passes_5": ({}, {"num_passes": 5}),
    "fusion_by_feature": ({"fusion_secondary_input": "feature"}, {}),
    "fusion_by_fused": ({"fusion_secondary_input": "fused"}, {}),
    "without_fusion": (CONCAT, {}),
    "without_dual_head": (SINGLE, {}),
    "hass_wide": (
        CONCAT | SINGLE | {"intermediate_size": 904},
        {"objective": "hass"},
    ),  # as many parameters as griffin
    "mask_consumed": ({}, {"alignment": "consumed"}),
    "mask_paper": ({}, {"alignment": "paper"}),
}

BLOCKS_PER_STEP = 8
MISALIGNMENT_PASSES, MISALIGNMENT_TOP_K = 5, 3  # depth of the paper's Fig. 1c, and the mask's k


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    target = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.float32).eval()
    teacher = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.bfloat16).eval()  # of the training
    tokenizer = AutoTokenizer.from_pretrained(args.target_dir)
    jobs = [(seed, row) for seed in args.seeds for row in args.rows][args.worker :: args.num_workers]
    answers = {temperature: target_answers(args, target, tokenizer, temperature) for temperature in args.temperatures}
    features = {
        "train": training_features(args, teacher, tokenizer, "train", args.max_steps * BLOCKS_PER_STEP),
        "valid": training_features(args, teacher, tokenizer, "valid", args.eval_blocks),
    }
    for seed, row in jobs:
        path = args.output_dir / f"{row}-seed{seed}.json"
        if path.exists():
            continue
        print(f"{time.strftime('%H:%M:%S')} {path.stem}", flush=True)
        draft, result = train_row(args, teacher, features, row, seed)
        draft.bind(target)
        result["acceptance"] = {str(t): acceptance(draft, target, known) for t, known in answers.items()}
        write_json(path, result | {"row": row, "seed": seed, "provenance": provenance(vars(args))})
        draft.save_pretrained(args.output_dir / "drafts" / path.stem)


# ---------------------------------------------------------------------- what all rows share


def training_features(
    args: argparse.Namespace, target: PreTrainedModel, tokenizer, split: str, num_blocks: int
) -> datasets.Dataset:
    """The first blocks of a split with the target's features; written once."""
    path = args.output_dir / f"{split}-{num_blocks}"
    blocks = datasets.load_from_disk(args.data_dir / split).select(range(num_blocks))
    prepare_features(target, tokenizer, blocks, path)
    return load_features(path, target, tokenizer, verify_checksums=False)


def target_answers(
    args: argparse.Namespace, target: PreTrainedModel, tokenizer, temperature: float
) -> list[list[int]]:
    """`[prompt_length, tokens...]` of the target's own answer to every evaluation prompt; written once."""
    path = args.output_dir / f"answers-T{temperature:g}.json"
    if not path.exists():
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        answers = []
        for index, prompt in enumerate(load_prompts(PACKAGED, args.prompts_per_domain)):
            input_ids = torch.tensor([encode_chat(tokenizer, prompt.turns[:1])])
            torch.manual_seed(index)
            sequence = target.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=args.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **settings,
            )
            answers.append([input_ids.shape[1], *sequence[0].tolist()])
        write_json(path, answers)
    return json.loads(path.read_text())


# ---------------------------------------------------------------------- one row


def train_row(
    args: argparse.Namespace, target: PreTrainedModel, features: dict[str, datasets.Dataset], row: str, seed: int
) -> tuple[GriffinDraftModel, dict]:
    config, settings = ROWS[row]
    recipe = make_parser().parse_args([])
    vars(recipe).update(max_steps=args.max_steps, batch_size=BLOCKS_PER_STEP, torch_compile=False, seed=seed)
    vars(recipe).update(output_dir=args.output_dir / "trainer" / f"{row}-seed{seed}", **settings)
    set_seed(seed)
    draft = GriffinDraftModel.from_target(target, **({"intermediate_size": args.intermediate_size} | config)).float()
    draft.set_attn_implementation("eager")
    arguments = training_arguments(recipe)
    arguments.set_save("no")
    arguments.set_evaluate("no")
    start = time.perf_counter()
    trainer = GriffinTrainer(
        model=draft,
        target=target,
        args=arguments,
        train_dataset=features["train"],
        eval_dataset=features["valid"],
        optimizers=(make_optimizer(recipe, draft, target), None),
    )
    trainer.train()
    train_seconds = time.perf_counter() - start
    trainer.args.num_passes, trainer.args.alignment_top_k = MISALIGNMENT_PASSES, MISALIGNMENT_TOP_K
    metrics = trainer.evaluate()
    draft.set_attn_implementation("sdpa")
    return draft.eval(), {
        "config": config,
        "settings": settings,
        "num_parameters": sum(parameter.numel() for parameter in draft.parameters()),
        "num_tokens": args.max_steps * BLOCKS_PER_STEP * len(features["train"][0]["input_ids"]),
        "train_seconds": train_seconds,
        "metrics": metrics,
    }


def acceptance(
    draft: GriffinDraftModel, target: PreTrainedModel, answers: list[list[int]], tree: dict[str, int] = DEFAULT_TREE
) -> dict[str, list[int]]:
    """Tokens that the cycles of every prompt emitted, and how many cycles there were; the paper's tree by default."""
    lengths: list[list[int]] = []
    for start in range(0, len(answers), 40):
        part = answers[start : start + 40]
        sequences = [torch.tensor(answer[1:]) for answer in part]
        known: KnownAnswers = know_answers(target, sequences, [answer[0] for answer in part])
        lengths += replay_acceptance(draft, known, GenerationConfig(**tree))
    return {"tokens": [sum(row) for row in lengths], "cycles": [len(row) for row in lengths]}


def write_json(path: Path, content: object) -> None:
    """All or nothing: other workers read these files."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target_dir", type=Path, default=Path("examples/mini/target"))
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair/ablations"))
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], default=[*ROWS], help="none: features and answers only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--max_steps", type=int, default=300, help=f"of {BLOCKS_PER_STEP} blocks of 512 tokens")
    parser.add_argument("--intermediate_size", type=int, default=384)
    parser.add_argument("--eval_blocks", type=int, default=64)
    parser.add_argument("--prompts_per_domain", type=int, default=40)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
