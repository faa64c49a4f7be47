"""
Trains the mini pair's target: a deep, thin Llama, so that one draft layer is cheap beside it.

    torchrun --nproc_per_node 2 trainers/mini_pair/train_target.py --data_dir runs/mini_pair --output_dir runs/target
    python trainers/mini_pair/train_target.py --data_dir runs/mini_pair --output_dir runs/target --max_steps 100

Run `prepare_data.py` first. On a CPU, one process per core (with `OMP_NUM_THREADS=1`) is faster than one process with
two threads, and `--attn_implementation eager` is faster than sdpa, whose CPU backward is slow for short sequences.
Matrices are trained with Muon, embeddings and norms with AdamW; the learning rate is constant after a warm-up and
falls linearly during the last `--decay_steps`. Interrupted runs continue from the newest checkpoint, and since the
plateau does not know where it ends, a run may be continued with another `--max_steps`.

Measured: README.md beside this file.
"""

import argparse
from pathlib import Path

import datasets
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.data_dir / "tokenizer")
    target = LlamaForCausalLM(target_config(args, tokenizer))
    target.set_attn_implementation(args.attn_implementation)

    trainer = Trainer(
        model=target,
        args=training_arguments(args),
        train_dataset=load_blocks(args.data_dir / "train"),
        eval_dataset=load_blocks(args.data_dir / "valid"),
        data_collator=default_data_collator,
        processing_class=tokenizer,
        optimizers=(MuonWithAdamW(target, lr=args.learning_rate, weight_decay=0.1), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) if args.output_dir.exists() else None)
    trainer.log_metrics("eval", trainer.evaluate())
    target.set_attn_implementation("sdpa")
    trainer.save_model(args.output_dir / "final")


def target_config(args: argparse.Namespace, tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=args.hidden_size // 128,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        **common_arguments(args),
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": args.decay_steps, "decay_type": "linear"},
        warmup_steps=args.warmup_steps,
        logging_steps=25,
        torch_compile=True,
    )


def common_arguments(args: argparse.Namespace) -> dict:
    """Arguments of the Trainer that all recipes of the mini pair share."""
    return {
        "output_dir": str(args.output_dir),
        "max_steps": args.max_steps,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "max_grad_norm": 1.0,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": True,
        "eval_strategy": "steps",
        "eval_steps": args.save_steps,
        "save_steps": args.save_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": args.seed,
        "ddp_find_unused_parameters": False,
    }


def load_blocks(path: Path) -> datasets.Dataset:
    blocks = datasets.load_from_disk(path).with_format("torch")
    return blocks.map(lambda block: {"labels": block["input_ids"]})


class MuonWithAdamW(torch.optim.Optimizer):
    """
    [`torch.optim.Muon`] for the matrices between embedding and head, AdamW for everything else, as one optimizer.

    Muon's step is scaled to AdamW's (`match_rms_adamw`), so one learning rate and one schedule serve both.
    """

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float):
        matrices, others = [], []
        embedding = model.get_input_embeddings().weight
        for parameter in model.parameters():
            (matrices if parameter.ndim == 2 and parameter is not embedding else others).append(parameter)
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.95))
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], defaults={})
        # One list of groups, shared by reference: the scheduler writes the learning rate that the parts read.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]

    def step(self, closure=None):
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair/target"))
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--intermediate_size", type=int, default=640)
    parser.add_argument("--num_hidden_layers", type=int, default=16)
    parser.add_argument("--attn_implementation", default="eager")
    parser.add_argument("--batch_size", type=int, default=8, help="blocks per process and step")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--warmup_steps", type=int, default=50)
    parser.add_argument("--decay_steps", type=int, default=500)
    parser.add_argument("--max_steps", type=int, default=2500)
    parser.add_argument("--save_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main(make_parser(__doc__).parse_args())
