"""tau and acceptance by depth as a module of `evaluate`; defined in `transformers_griffin.evaluation.metrics`."""

import datasets
import evaluate

from transformers_griffin.evaluation.metrics import acceptance_by_depth, mean_acceptance_length


DESCRIPTION = """
How many tokens speculative decoding emits per cycle of drafting and verification. tau, the acceptance length, is the
mean over all cycles: the accepted draft tokens and the one that the target adds. The token of the prefill belongs to
no cycle. Acceptance by depth is the share of cycles that accept at least 1, 2, ... draft tokens.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]`): for every answer, the tokens that each of its cycles emitted; `acceptance_lengths`
        of `target.generate(..., assistant_model=draft, return_dict_in_generate=True)`.
    depth (`int`, *optional*): levels of the draft tree; those of the longest cycle when not given.

Returns:
    tau (`float`): tokens emitted per cycle; NaN if there was no cycle.
    acceptance_by_depth (`list[float]`): share of the cycles that accept at least 1, 2, ... `depth` draft tokens.

Example:

>>> tau = evaluate.load("path/to/acceptance_length")
>>> tau.compute(predictions=[[1, 3], [4, 4]])
{'tau': 3.0, 'acceptance_by_depth': [0.75, 0.75, 0.5]}
"""

CITATION = """
@article{hu2025griffin,
  title={GRIFFIN: Effective Token Alignment for Faster Speculative Decoding},
  author={Hu, Shijing and Li, Jingyang and Xie, Xingyu and Lu, Zhihui and Toh, Kim-Chuan and Zhou, Pan},
  journal={arXiv preprint arXiv:2502.11018},
  year={2025}
}
"""


class AcceptanceLength(evaluate.Metric):
    """tau and acceptance by depth; see `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            reference_urls=["https://arxiv.org/abs/2502.11018"],
        )

    def _compute(self, predictions: list[list[int]], depth: int | None = None) -> dict[str, float | list[float]]:
        if depth is None:
            depth = max((length - 1 for lengths in predictions for length in lengths), default=0)
        return {
            "tau": mean_acceptance_length(predictions),
            "acceptance_by_depth": acceptance_by_depth(predictions, depth),
        }
