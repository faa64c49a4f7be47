"""
GriffinTrainingArguments: transformers' TrainingArguments plus the choices of GRIFFIN training.

Next: `objective.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from .losses import ALIGNMENTS


# What the named objectives set where an option is not given. The draft's architecture is not theirs: EAGLE-2 and HASS
# drafts are made with `fusion="concat", dual_head=False`.
OBJECTIVES: dict[str, dict[str, Any]] = {
    # Released GRIFFIN training.
    "griffin": {"num_passes": 3, "alignment_top_k": 3, "token_loss_weight": 0.1, "top_token_loss_weight": 0.5},
    # Harmonized training: every position of every pass (arXiv 2408.15766; K = 10, w = 1.0).
    "hass": {"num_passes": 3, "alignment_top_k": 0, "token_loss_weight": 0.1, "top_token_loss_weight": 1.0},
    # One pass over true features (arXiv 2401.15077, and unchanged in EAGLE-2).
    "eagle": {"num_passes": 1, "alignment_top_k": 0, "token_loss_weight": 0.1, "top_token_loss_weight": 0.0},
}


@dataclass
class GriffinTrainingArguments(TrainingArguments):
    """
    Arguments of [`GriffinTrainer`]: those of [`~transformers.TrainingArguments`] and the fields below.

    Options that are None take the value of `objective`; the default is the released training.
    """

    objective: str = field(
        default="griffin",
        metadata={
            "help": "`griffin`, `hass` or `eagle`: what `num_passes`, `alignment_top_k`, `token_loss_weight` and "
            "`top_token_loss_weight` are where they are not given."
        },
    )
    num_passes: int = field(
        default=None,  # type: ignore[assignment]  # the objective's
        metadata={
            "help": "Passes of a training step, each reading the draft's features of the pass before (Table 4)."
        },
    )
    num_passes_schedule: list[float] = field(
        default=None,  # type: ignore[arg-type]  # equal parts
        metadata={
            "help": "For pass 2, 3, ...: the fraction of all steps after which it joins. Equal parts when not given, "
            "like the paper's runs, each of which starts from the one before: `0.333 0.667` with three passes. `0 0` "
            "for all three from the first step."
        },
    )
    alignment_top_k: int = field(
        default=None,  # type: ignore[assignment]  # the objective's
        metadata={
            "help": "A pass learns from a position only if the data's token was among the draft's top k in the passes "
            "before (Eq. 3, Table 3). 0 for no mask."
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
        default=None,  # type: ignore[assignment]  # the objective's
        metadata={"help": "Weight of the cross-entropy of predict (released code: 0.1)."},
    )
    top_token_loss_weight: float = field(
        default=None,  # type: ignore[assignment]  # the objective's
        metadata={"help": "Weight of the cross-entropy over the target's most likely tokens only (released: 0.5)."},
    )
    top_token_loss_k: int = field(
        default=10, metadata={"help": "How many most likely tokens that term reads (released code)."}
    )
    token_labels: str = field(
        default="soft",
        metadata={
            "help": "What the cross-entropy compares with: `soft`, the target's distribution (released code), or "
            "`hard`, the data's next token (the paper's text)."
        },
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
        default=512, metadata={"help": "Rows of logits that exist at the same time (our choice)."}
    )
    max_length: int = field(
        default=2048, metadata={"help": "Conversations are cut to this many tokens (released code)."}
    )
    assistant_only_loss: bool = field(
        default=True,
        metadata={
            "help": "Whether only assistant tokens of conversations have a loss (released code). Found by the chat "
            "template's `{% generation %}` marks, or by rendering a conversation message by message."
        },
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Whether rows of text are packed into rows of up to `max_length` tokens; no document sees another."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("objective", tuple(OBJECTIVES))
        self._check_choice("alignment", ALIGNMENTS)
        self._check_choice("token_labels", ("soft", "hard"))
        for name, value in OBJECTIVES[self.objective].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, lowest in (("num_passes", 1), ("alignment_top_k", 0), ("head_chunk_size", 1), ("max_length", 2)):
            if getattr(self, name) < lowest:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least {lowest}.")
        if self.num_passes_schedule is None:
            self.num_passes_schedule = [number / self.num_passes for number in range(1, self.num_passes)]
        starts = self.num_passes_schedule
        is_fraction = all(0 <= start <= 1 for start in starts)
        if len(starts) != self.num_passes - 1 or list(starts) != sorted(starts) or not is_fraction:
            raise ValueError(
                f"`num_passes_schedule` is {starts}, but with {self.num_passes} passes it must be "
                f"{self.num_passes - 1} non-decreasing fractions from 0 to 1, one for every pass after the first."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What `training_args.bin` holds: everything but the access token."""
        return self.__dict__ | {"hub_token": None}

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"`{name}` is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}.")

    def num_passes_at(self, step: int, max_steps: int) -> int:
        """How many passes a training step has, by `num_passes_schedule`."""
        return 1 + sum(step >= start * max_steps for start in self.num_passes_schedule)


__all__ = ["OBJECTIVES", "GriffinTrainingArguments"]
