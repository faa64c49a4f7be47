"""
Teaches the mini pair's target not to repeat itself: sequence-level unlikelihood (Welleck et al., arXiv 1908.04319).

    torchrun --nproc_per_node 2 trainers/mini_pair/reduce_repetition.py --target_dir runs/mini_pair/target/final

A small model decoded greedily falls into loops, and a draft that predicts a loop says nothing about drafts. Every
second step is ordinary language modelling on blocks. In the steps between, the target continues the beginnings of such
blocks greedily, and each token that completes a 4-gram which its own continuation already holds is made less likely:
the loss is -log(1 - p(token)), Eq. 4 of the paper over the tokens of repeated 4-grams.

Measured: README.md beside this file.
"""

import argparse
from pathlib import Path

import torch
from train_target import common_arguments, load_blocks
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.target_dir)
    target = AutoModelForCausalLM.from_pretrained(args.target_dir, dtype=torch.float32)
    target.set_attn_implementation(args.attn_implementation)
    trainer = UnlikelihoodTrainer(
        model=target,
        args=training_arguments(args),
        train_dataset=load_blocks(args.data_dir / "train"),
        eval_dataset=load_blocks(args.data_dir / "valid"),
        data_collator=default_data_collator,
        processing_class=tokenizer,
        prefix_length=args.prefix_length,
        continuation_length=args.continuation_length,
        assistant_id=tokenizer.convert_tokens_to_ids("<|assistant|>"),
    )
    trainer.train()
    trainer.log_metrics("eval", trainer.evaluate())
    target.set_attn_implementation("sdpa")
    trainer.save_model(args.output_dir / "final")


class UnlikelihoodTrainer(Trainer):
    """Alternates language modelling with unlikelihood of what the model itself repeats."""

    def __init__(self, *args, prefix_length: int, continuation_length: int, assistant_id: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.prefix_length = prefix_length
        self.continuation_length = continuation_length
        self.assistant_id = assistant_id
        self.repeated = torch.zeros(2)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training or self.state.global_step % 2 == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        prefixes = self._prefixes(inputs["input_ids"])
        target = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with torch.no_grad():
            target.eval()
            sequences = target.generate(
                prefixes,
                attention_mask=torch.ones_like(prefixes),
                max_new_tokens=self.continuation_length,
                do_sample=False,
                use_cache=True,
            )
            model.train()
        # One length for every step; what is padded here lies behind the end of an answer.
        missing = self.prefix_length + self.continuation_length - sequences.shape[1]
        pad_id = self.processing_class.pad_token_id
        sequences = torch.nn.functional.pad(sequences, (0, missing), value=pad_id)
        continuation = sequences[:, self.prefix_length :]
        is_said = (continuation == self.processing_class.eos_token_id).cumsum(dim=1) == 0
        is_repeated = repeated_ngrams(continuation) & is_said
        self.repeated += torch.stack([is_repeated.sum(), is_said.sum()]).cpu()
        logits = model(input_ids=sequences, use_cache=False).logits[:, self.prefix_length - 1 : -1].float()
        token_logits = logits.gather(2, continuation.unsqueeze(2)).squeeze(2)
        # 1 - p from the other tokens, which stays exact where p is close to 1.
        others = logits.scatter(2, continuation.unsqueeze(2), -torch.inf).logsumexp(dim=2)
        unlikelihood = torch.logaddexp(token_logits, others) - others
        loss = (unlikelihood * is_repeated).sum() / is_said.sum().clamp(min=1)
        return (loss, None) if return_outputs else loss

    def _prefixes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Two windows of every block: one that ends where an answer begins (if there is one), one anywhere."""
        windows = input_ids.unfold(1, self.prefix_length, 1)
        is_start = windows[:, :, -1] == self.assistant_id
        weights = torch.where(is_start.any(dim=1, keepdim=True), is_start.float(), 1.0)
        chosen = torch.cat([weights.multinomial(1), torch.ones_like(weights).multinomial(1)], dim=1)
        index = chosen.unsqueeze(2).expand(-1, -1, self.prefix_length)
        return windows.gather(1, index).flatten(0, 1)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs["repeated"] = (self.repeated[0] / self.repeated[1].clamp(min=1)).item()
            self.repeated.zero_()
        super().log(logs, start_time)


def repeated_ngrams(tokens: torch.Tensor, n: int = 4) -> torch.Tensor:
    """
    Marks the tokens of every n-gram that stands further left in its row already.

    Args:
        tokens (`torch.LongTensor` of shape `(batch_size, length)`): continuations.
        n (`int`, defaults to 4): tokens of an n-gram.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length)`.
    """
    ngrams = tokens.unfold(1, n, 1)
    is_equal = (ngrams.unsqueeze(2) == ngrams.unsqueeze(1)).all(dim=3)
    is_repeat = is_equal.tril(diagonal=-1).any(dim=2)
    starts = torch.nn.functional.pad(is_repeat, (n - 1, n - 1))
    return starts.unfold(1, n, 1).any(dim=2)


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        **common_arguments(args),
        lr_scheduler_type="linear",
        warmup_steps=10,
        adam_beta2=0.95,
        logging_steps=10,
        torch_compile=True,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target_dir", type=Path, default=Path("runs/mini_pair/target/final"))
    parser.add_argument("--data_dir", type=Path, default=Path("runs/mini_pair"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mini_pair/target_less_repetition"))
    parser.add_argument("--attn_implementation", default="eager")
    parser.add_argument("--prefix_length", type=int, default=64)
    parser.add_argument("--continuation_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8, help="blocks per process and step")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--save_steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
