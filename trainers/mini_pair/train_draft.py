"""
Trains the mini pair's draft: three passes with top-3 alignment masks, in one run that raises the number of passes.

    torchrun --nproc_per_node 2 trainers/mini_pair/train_draft.py --target_dir runs/target/final --max_steps 1000
    python trainers/mini_pair/train_draft.py --target_dir runs/target/final --max_steps 20 --eval_blocks 16

Run `prepare_data.py` and `train_target.py` first. On a CPU, one process per core (with `OMP_NUM_THREADS=1`) is faster
than one process with two threads. The frozen target runs in bfloat16, the draft under bfloat16 autocast; matrices are
trained with Muon (`--optimizer adamw` for AdamW alone). Interrupted runs continue from the newest checkpoint.

Measured: README.md beside this file.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
from train_target import MuonWithAdamW, common_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint

from transformers_griffin import GriffinDraftModel
from transformers_griffin.training import (
    GriffinTrainer,
    GriffinTrainingArguments,
    load_training_data,
    tokenize_dataset,
)
from transformers_griffin.training.arguments import OBJECTIVES
from transformers_griffin.training.losses import ALIGNMENTS


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.data_dir / "tokenizer")
    target = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.bfloat16)
    draft = GriffinDraftModel.from_target(target, intermediate_size=args.intermediate_size).float()
    # Backward through sdpa is slow on a CPU; where there is a GPU it is not.
    draft.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")

    trainer = GriffinTrainer(
        model=draft,
        target=target,
        args=training_arguments(args),
        train_dataset=load_train_rows(args, tokenizer),
        eval_dataset=load_blocks(args.data_dir / "valid", args).take(args.eval_blocks),
        processing_class=tokenizer,
        optimizers=(make_optimizer(args, draft, target), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) if args.output_dir.exists() else None)
    trainer.log_metrics("eval", trainer.evaluate())
    draft.set_attn_implementation("sdpa")
    trainer.save_model(args.output_dir / "final")


def training_arguments(args: argparse.Namespace) -> GriffinTrainingArguments:
    return GriffinTrainingArguments(
        **common_arguments(args),
        objective=args.objective,
        num_passes=args.num_passes,
        num_passes_schedule=args.num_passes_schedule,
        alignment_top_k=args.alignment_top_k,
        alignment=args.alignment,
        feature_loss_weight=args.feature_loss_weight,
        token_loss_weight=args.token_loss_weight,
        top_token_loss_weight=args.top_token_loss_weight,
        feature_noise=args.feature_noise,
        loss_mask_shift=2,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": args.max_steps // 3, "decay_type": "linear"},
        warmup_steps=args.warmup_steps,
        logging_steps=args.logging_steps,
        torch_compile=args.torch_compile,
    )


def load_train_rows(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Blocks of text, with the target's own answers among them if there are any."""
    blocks = load_blocks(args.data_dir / "train", args)
    if args.answers_dir is None:
        return blocks
    length = len(blocks[0]["input_ids"])
    answers = tokenize_dataset(load_training_data(args.answers_dir), tokenizer, length, pack=True)
    ones = [1] * length
    blocks = blocks.map(lambda block: {"loss_mask": block.get("loss_mask", ones), "documents": ones})
    mixed = [blocks.with_format(None).cast(answers.features), answers]
    shares = [1 - args.answers_share, args.answers_share]
    return datasets.interleave_datasets(mixed, probabilities=shares, seed=args.seed, stopping_strategy="all_exhausted")


def load_blocks(path: Path, args: argparse.Namespace) -> datasets.Dataset:
    blocks = datasets.load_from_disk(path).with_format("torch")
    if args.loss_on == "all":
        return blocks
    tokenizer = AutoTokenizer.from_pretrained(args.data_dir / "tokenizer")
    opening, closing = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    return blocks.map(
        lambda batch: {"loss_mask": assistant_mask(batch["input_ids"], opening, closing)},
        batched=True,
        batch_size=1000,
    )


def assistant_mask(input_ids: torch.Tensor, opening: int, closing: int) -> torch.Tensor:
    """
    Marks what lies between `<|assistant|>` (excluded) and `<|end|>` (included), in packed blocks.

    A block that starts within a message does so unmarked.

    Args:
        input_ids (`torch.Tensor` of shape `(n_blocks, block_size)`): packed conversations.
        opening (`int`): id of `<|assistant|>`.
        closing (`int`): id of `<|end|>`.

    Returns:
        `torch.LongTensor` of shape `(n_blocks, block_size)`.
    """
    position = torch.arange(input_ids.shape[1])
    newest = lambda is_marker: torch.where(is_marker, position, -1).cummax(dim=1).values  # noqa: E731
    last_opening, last_closing = newest(input_ids == opening), newest(input_ids == closing)
    before = torch.nn.functional.pad(last_closing[:, :-1], (1, 0), value=-1)
    return ((last_opening > before) & (input_ids != opening)).long()


def make_optimizer(
    args: argparse.Namespace, draft: GriffinDraftModel, target: PreTrainedModel
) -> torch.optim.Optimizer:
    if args.optimizer == "adamw":
        return torch.optim.AdamW(draft.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    # The draft owns no embedding: the target's is borrowed.
    owner = SimpleNamespace(parameters=draft.parameters, get_input_embeddings=target.get_input_embeddings)
    return MuonWithAdamW(owner, lr=args.learning_rate, weight_decay=0.1)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target_dir", type=Path, default=Path("runs/mini_pair/target/final"))
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair/draft"))
    parser.add_argument("--answers_dir", type=Path, help="the target's own answers, of `griffin prepare --regenerate`")
    parser.add_argument("--answers_share", type=float, default=0.25, help="of the rows")
    parser.add_argument("--intermediate_size", type=int, default=640)
    parser.add_argument("--objective", choices=[*OBJECTIVES], default="griffin")
    parser.add_argument("--num_passes", type=int, help="the objective's when not given, as all options below")
    parser.add_argument("--num_passes_schedule", type=float, nargs="*")
    parser.add_argument("--alignment_top_k", type=int, help="0 for no mask")
    parser.add_argument("--alignment", choices=ALIGNMENTS, default="released")
    parser.add_argument("--token_loss_weight", type=float)
    parser.add_argument("--top_token_loss_weight", type=float)
    parser.add_argument("--feature_loss_weight", type=float, default=1.0)
    parser.add_argument("--feature_noise", type=float, default=0.2)
    parser.add_argument("--loss_on", choices=["all", "assistant"], default="all", help="tokens of packed blocks")
    parser.add_argument("--batch_size", type=int, default=8, help="blocks per process and step")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--save_steps", type=int, default=200)
    parser.add_argument("--logging_steps", type=int, default=25)
    parser.add_argument("--eval_blocks", type=int, default=64)
    parser.add_argument("--torch_compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
