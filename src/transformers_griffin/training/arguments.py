"""
GriffinTrainingArguments: transformers' TrainingArguments plus the choices of GRIFFIN training.

Next: `objective.py`.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .losses import ALIGNMENTS


@dataclass
class GriffinTrainingArguments(TrainingArguments):
    """
    Arguments of [`GriffinTrainer`]: those of [`~transformers.TrainingArguments`] and the fields below.

    The defaults are the released training. Baselines and ablations are settings: HASS is `alignment_top_k=None`, EAGLE
    is `num_passes=1, top_token_loss_weight=0.0` (each with a draft configured accordingly).
    """

    num_passes: int = field(
        default=3,
        metadata={
            "help": "Passes of a training step, each reading the draft's features of the pass before (Table 4)."
        },
    )
    num_passes_schedule: list[float] | None = field(
        default=None,
        metadata={
            "help": "For pass 2, 3, ...: the fraction of all steps after which it joins, for example `0.5 0.75` with "
            "three passes. All passes from the first step when not given (the paper starts each number of passes from "
            "the run before it)."
        },
    )
    alignment_top_k: int | None = field(
        default=3,
        metadata={
            "help": "A pass learns from a position only if the data's token was among the draft's top k in the passes "
            "before (Eq. 3; k of the released code). None for no mask."
        },
    )
    alignment: str = field(
        default="released",
        metadata={
            "help": "Which hits mask a pass: `released` (passes before it, newest about the token that it outputs), "
            "`consumed` (passes before it, newest about the token that it reads) or `paper` (Eq. 3: its own as well)."
        },
    )
    feature_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the SmoothL1 distance of regress (released code)."}
    )
    token_loss_weight: float = field(
        default=0.1,
        metadata={"help": "Weight of the cross-entropy against the target's distribution (released)."},
    )
    top_token_loss_weight: float = field(
        default=0.5, metadata={"help": "Weight of the same over the target's most likely tokens (released code)."}
    )
    top_token_loss_k: int = field(
        default=10, metadata={"help": "How many most likely tokens that term reads (released code)."}
    )
    feature_noise: float = field(
        default=0.2,
        metadata={
            "help": "Uniform noise on the features that pass 1 reads while training, of width `feature_noise * 512 / "
            "length` (released code)."
        },
    )
    loss_mask_shift: int = field(
        default=0,
        metadata={
            "help": "Position t is trained if token x_{t + loss_mask_shift} has a loss. 0 in the released code; 2 "
            "masks by the token that the position predicts."
        },
    )
    head_chunk_size: int = field(
        default=512, metadata={"help": "Positions whose logits exist at the same time (our choice)."}
    )
    max_length: int = field(
        default=2048, metadata={"help": "Conversations are cut to this many tokens (released code)."}
    )
    assistant_only_loss: bool = field(
        default=True,
        metadata={
            "help": "Whether only assistant tokens of `messages` have a loss (released code); needs a chat template "
            "with `{% generation %}`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_passes < 1:
            raise ValueError(f"`num_passes` is {self.num_passes}, but a training step needs at least 1 pass.")
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"`alignment` is {self.alignment!r}, but must be one of {', '.join(ALIGNMENTS)}.")
        starts = self.num_passes_schedule
        if starts is not None and (len(starts) != self.num_passes - 1 or list(starts) != sorted(starts)):
            raise ValueError(
                f"`num_passes_schedule` is {starts}, but with {self.num_passes} passes it must be "
                f"{self.num_passes - 1} non-decreasing fractions, one for every pass after the first."
            )

    def num_passes_at(self, step: int, max_steps: int) -> int:
        """How many passes a training step has, by `num_passes_schedule`."""
        if self.num_passes_schedule is None:
            return self.num_passes
        return 1 + sum(step >= start * max_steps for start in self.num_passes_schedule)


__all__ = ["GriffinTrainingArguments"]
