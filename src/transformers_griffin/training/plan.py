"""
What training a draft will take, from the target's configuration alone: parameters, memory, disk, arithmetic, hours.

Parameters are counted on modules without storage. Everything else is an estimate, by these rules, with P the draft's
parameters, A the target's parameters that one token meets (embedding and LM head left out), d the hidden size, I the
draft's FFN size, V the vocabulary, H the query heads and D their width, L `max_length`, B `batch_size`, N passes::

    target     2 A + 2 H D L layers            FLOPs a token: one forward, keys at half the length on average
    head       2 d V                           FLOPs a token: the target's distribution, once for all passes
    pass       6 P + 4 d V + 6 H D L           FLOPs a token: forward and backward; the LM head is frozen
    memory     18 P                            weights, gradients, AdamW in fp32, and autocast's bf16 weights
               B L N (52 d + 12 I + 4 H_kv D)  activations under bf16 autocast
               8 B H L 256  (if N > 1)         scores of one block of rows, computed again when backward
               20 V head_chunk_size            logits, their gradient and what lies between
    disk       (2 d + 5) tokens                bf16 features, token ids, loss mask
    hours      FLOPs / (peak * UTILISATION)

Every token counts as if it had a loss, so real data takes less. The one free number is `UTILISATION`; with it, the
paper's own runs come out within a factor of 1.4 of its hours ([`paper_calibration`]).

Next: `cli/`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from ..modeling_griffin import GriffinDraftModel
from .pass_attention import QUERY_BLOCK


# Share of the peak that training reaches. Our choice: the round number that meets the paper's hours best.
UTILISATION = 0.25
# ShareGPT as in the paper: 68,000 conversations, cut at 2048 tokens. The mean length is our assumption; it makes 20
# epochs 2 billion tokens, the lower end of the 2 to 4 billion that the EAGLE paper (2401.15077) states for this data.
SHAREGPT_TOKENS = 68_000 * 1_500


@dataclass(frozen=True)
class Gpu:
    """Data-sheet values: dense bf16 matrix products with fp32 accumulation, and memory."""

    tflops: float
    memory_gb: float


GPUS = {
    "A100": Gpu(312, 80),
    "H100": Gpu(989, 80),
    "H200": Gpu(989, 141),
    "L40S": Gpu(362, 48),
    "RTX4090": Gpu(165, 24),
}


@dataclass(frozen=True)
class PlanSettings:
    """
    What is to be trained, and how.

    Args:
        num_passes (`int`, defaults to 3): N.
        tokens (`int`, defaults to 102,000,000): tokens of the data, counted once.
        epochs (`int`, defaults to 20): how often they are seen (released code).
        max_length (`int`, defaults to 2048): tokens of a row.
        batch_size (`int`, defaults to 4): rows that a device trains at the same time.
        head_chunk_size (`int`, defaults to 512): rows of logits that exist at the same time.
        target_bits (`int`, defaults to 16): bits of a weight of the loaded target: 16, 8 or 4.
        stored_features (`bool`, defaults to `False`): whether the features come from the disk.
        gpu (`str`, defaults to `"A100"`): one of `GPUS`.

    Raises:
        ValueError: if a number is not positive, or `target_bits` or `gpu` is unknown.
    """

    num_passes: int = 3
    tokens: int = SHAREGPT_TOKENS
    epochs: int = 20
    max_length: int = 2048
    batch_size: int = 4
    head_chunk_size: int = 512
    target_bits: int = 16
    stored_features: bool = False
    gpu: str = "A100"

    def __post_init__(self) -> None:
        for name in ("num_passes", "tokens", "epochs", "max_length", "batch_size", "head_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least 1.")
        allowed: tuple[tuple[str, Sequence[Any]], ...] = (("target_bits", (4, 8, 16)), ("gpu", tuple(GPUS)))
        for name, values in allowed:
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but must be one of {', '.join(map(str, values))}."
                )


@dataclass(frozen=True)
class TrainingPlan:
    """What [`plan_training`] returns; all but the parameters are estimates."""

    settings: PlanSettings
    target_parameters: int
    active_parameters: int  # of the target's decoder, that one token meets; without embedding and LM head
    draft_parameters: int
    target_flops: int  # one token, forward
    head_flops: int  # one token, the target's distribution
    pass_flops: int  # one token, forward and backward of one pass
    memory_bytes: dict[str, int]  # on one device, by what it is for
    disk_bytes: int  # of the stored features; 0 if they are computed while training
    gpu_hours: float  # one run whose passes join at equal parts
    stepwise_gpu_hours: float  # N runs of as many epochs, run j with j passes: the paper's recipe

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"memory_bytes_total": sum(self.memory_bytes.values()), "utilisation": UTILISATION}


def plan_training(
    target_config: PreTrainedConfig, settings: PlanSettings | None = None, **draft_overrides: Any
) -> TrainingPlan:
    """
    Plans the training of a draft, by the rules of the module docstring.

    Args:
        target_config ([`~transformers.PreTrainedConfig`]): of any causal language model. No weights are needed.
        settings ([`PlanSettings`], *optional*): see there.
        draft_overrides: fields of [`GriffinDraftConfig`], as in [`GriffinDraftModel.from_target`].

    Returns:
        [`TrainingPlan`].
    """
    settings = settings or PlanSettings()
    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(target_config)
        draft = GriffinDraftModel.from_target(target, **draft_overrides)
    active = active_parameters(target)
    flops = flops_per_token(target, draft, active, settings.max_length)
    return TrainingPlan(
        settings=settings,
        target_parameters=target.num_parameters(),
        active_parameters=active,
        draft_parameters=draft.num_parameters(),
        target_flops=flops[0],
        head_flops=flops[1],
        pass_flops=flops[2],
        memory_bytes=memory_bytes(target, draft, settings),
        disk_bytes=settings.tokens * (2 * draft.config.hidden_size + 5) if settings.stored_features else 0,
        gpu_hours=gpu_hours(*flops, settings, num_runs=1),
        stepwise_gpu_hours=gpu_hours(*flops, settings, num_runs=settings.num_passes),
    )


def active_parameters(target: PreTrainedModel) -> int:
    """
    Parameters of the target's decoder that one token meets.

    Embedding and LM head are left out. Of routed experts only as many count as a token is sent to.
    """
    text = target.config.get_text_config(decoder=True)
    left_out = {id(module.weight) for module in (target.get_input_embeddings(), target.get_output_embeddings())}
    parameters = {name: value for name, value in target.get_decoder().named_parameters() if id(value) not in left_out}
    in_experts = sum(value.numel() for name, value in parameters.items() if "experts" in name.split("."))
    others = sum(value.numel() for value in parameters.values()) - in_experts
    if in_experts == 0:
        return others
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    num_experts = next(value for name in names if (value := getattr(text, name, None)) is not None)
    return others + in_experts * text.num_experts_per_tok // num_experts


def flops_per_token(
    target: PreTrainedModel, draft: GriffinDraftModel, active: int, max_length: int
) -> tuple[int, int, int]:
    """FLOPs of one token: the target's forward, its distribution, and one training pass of the draft."""
    text, config = target.config.get_text_config(decoder=True), draft.config
    query_width = config.num_attention_heads * _head_dim(draft)
    head = 2 * config.hidden_size * config.vocab_size
    return (
        2 * active + 2 * query_width * max_length * text.num_hidden_layers,
        head,
        6 * draft.num_parameters() + 2 * head + 6 * query_width * max_length,
    )


def memory_bytes(target: PreTrainedModel, draft: GriffinDraftModel, settings: PlanSettings) -> dict[str, int]:
    """Bytes on one device, by what they are for; the whole target on it, no gradient checkpointing."""
    config, passes, length = draft.config, settings.num_passes, settings.max_length
    rows = settings.batch_size * length
    per_position = 52 * config.hidden_size + 12 * config.intermediate_size
    per_position += 4 * (config.num_key_value_heads or config.num_attention_heads) * _head_dim(draft)
    scores = 8 * rows * config.num_attention_heads * min(length, QUERY_BLOCK) if passes > 1 else 0
    return {
        "target weights": target.num_parameters() * settings.target_bits // 8,
        "draft weights, gradients, AdamW": 18 * draft.num_parameters(),
        "draft activations": rows * passes * per_position + scores,
        "logits in chunks": 20 * min(rows, settings.head_chunk_size) * config.vocab_size,
    }


def gpu_hours(target: int, head: int, one_pass: int, settings: PlanSettings, num_runs: int) -> float:
    """
    Hours of one device for `num_runs` runs of `epochs` epochs that together raise the passes from 1 to N.

    However they are split, a token meets (N + 1) / 2 passes in the mean of the epochs. Stored features cost one
    forward of the target, for all epochs and runs.
    """
    epochs = settings.epochs * num_runs
    target_epochs = 1 if settings.stored_features else epochs
    per_token = target_epochs * target + epochs * (head + (settings.num_passes + 1) / 2 * one_pass)
    return settings.tokens * per_token / (GPUS[settings.gpu].tflops * 1e12 * UTILISATION) / 3600


def _head_dim(draft: GriffinDraftModel) -> int:
    attention: Any = draft.layers[0].self_attn
    return attention.head_dim


# ---------------------------------------------------------------------- the paper's runs

# Targets whose training time the paper states, in hours of an A100.
PAPER_RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "LLaMA2-7B": (
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        150,
    ),
    "LLaMA2-13B": (
        {
            "vocab_size": 32000,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
        250,
    ),
    "LLaMA3-70B": (
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        600,
    ),
}


def paper_calibration() -> dict[str, tuple[float, float]]:
    """
    Our estimate and the paper's figure, in A100 hours, for the paper's recipe: stepwise, stored features, ShareGPT.

    Returns:
        `dict[str, tuple[float, float]]`: by target.
    """
    settings = PlanSettings(stored_features=True)
    return {
        name: (plan_training(LlamaConfig(**fields), settings).stepwise_gpu_hours, hours)
        for name, (fields, hours) in PAPER_RUNS.items()
    }


# ---------------------------------------------------------------------- for people


def format_plan(plan: TrainingPlan, calibration: dict[str, tuple[float, float]] | None = None) -> str:
    """
    The plan as a table.

    Args:
        plan ([`TrainingPlan`]): of [`plan_training`].
        calibration (`dict`, *optional*): of [`paper_calibration`], to be set beside it.
    """
    settings, gpu = plan.settings, GPUS[plan.settings.gpu]
    total = sum(plan.memory_bytes.values())
    lines = ["parameters (counted)"]
    lines += _rows({"target": f"{plan.target_parameters:,}", "draft": f"{plan.draft_parameters:,}"})
    lines += [f"memory of one device (estimate), {settings.batch_size} rows of {settings.max_length} tokens"]
    lines += _rows({name: _readable(size, "B") for name, size in plan.memory_bytes.items()})
    fits = "fits in" if total <= gpu.memory_gb * 1e9 else "DOES NOT FIT in"
    lines += _rows({"all": _readable(total, "B"), settings.gpu: f"{fits} {_readable(gpu.memory_gb * 1e9, 'B')}"})
    lines += ["disk"]
    stored = _readable(plan.disk_bytes, "B") if settings.stored_features else "none"
    lines += _rows({"stored features": stored})
    lines += ["arithmetic of one token (estimate)"]
    lines += _rows(
        {
            "target, forward": _readable(plan.target_flops, "FLOP"),
            "target's distribution": _readable(plan.head_flops, "FLOP"),
            "draft, one pass": _readable(plan.pass_flops, "FLOP"),
        }
    )
    lines += [
        f"{settings.gpu} hours (estimate), {settings.tokens / 1e6:,.0f}M tokens, {settings.epochs} epochs, "
        f"{UTILISATION:.0%} of {gpu.tflops:g} TFLOP/s"
    ]
    lines += _rows(
        {
            f"one run, 1 to {settings.num_passes} passes": f"{plan.gpu_hours:,.1f}",
            f"stepwise, {settings.num_passes} runs": f"{plan.stepwise_gpu_hours:,.1f}",
        }
    )
    if calibration:
        lines += ["the same arithmetic beside the paper (A100 hours, 3 runs, stored features)"]
        lines += _rows({name: f"{ours:,.0f}, paper {paper:g}" for name, (ours, paper) in calibration.items()})
    return "\n".join(lines)


def _readable(number: float, unit: str) -> str:
    return tqdm.format_sizeof(number, suffix=unit)


def _rows(values: dict[str, str]) -> list[str]:
    return [f"  {name:<32} {value:>24}" for name, value in values.items()]


__all__ = [
    "GPUS",
    "SHAREGPT_TOKENS",
    "UTILISATION",
    "Gpu",
    "PlanSettings",
    "TrainingPlan",
    "active_parameters",
    "format_plan",
    "paper_calibration",
    "plan_training",
]
