"""The misaligned rate by pass as a module of `evaluate`; defined in `transformers_griffin.evaluation.metrics`."""

import datasets
import evaluate

from transformers_griffin.evaluation.metrics import misaligned_rates


DESCRIPTION = """
How often a draft leaves the target's answer, by drafting pass. A chain starts at a position of the answer and takes
one more of its tokens with every pass. It is misaligned at pass n if, in one of the passes 1 .. n, the answer's token
was not among the draft's top k (Fig. 1c of the GRIFFIN paper). One minus the rate of pass 1 is the top-k agreement of
draft and target.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[list[int]]]`): for every chain and each of its passes, the draft's top k tokens.
    references (`list[list[int]]`): for every chain and each of its passes, the token of the answer.

Returns:
    misaligned_rate (`list[float]`): by pass, the share of misaligned chains among those that have so many passes.

Example:

>>> misaligned = evaluate.load("path/to/misaligned_rate")
>>> misaligned.compute(predictions=[[[1, 2], [3, 4]], [[1, 2], [5, 6]]], references=[[1, 4], [2, 7]])
{'misaligned_rate': [0.0, 0.5]}
"""

CITATION = """
@article{hu2025griffin,
  title={GRIFFIN: Effective Token Alignment for Faster Speculative Decoding},
  author={Hu, Shijing and Li, Jingyang and Xie, Xingyu and Lu, Zhihui and Toh, Kim-Chuan and Zhou, Pan},
  journal={arXiv preprint arXiv:2502.11018},
  year={2025}
}
"""


class MisalignedRate(evaluate.Metric):
    """The misaligned rate by pass; see `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        tokens = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(tokens), "references": tokens}),
            reference_urls=["https://arxiv.org/abs/2502.11018"],
        )

    def _compute(self, predictions: list[list[list[int]]], references: list[list[int]]) -> dict[str, list[float]]:
        hits = [
            [token in candidates for candidates, token in zip(passes, tokens, strict=True)]
            for passes, tokens in zip(predictions, references, strict=True)
        ]
        return {"misaligned_rate": misaligned_rates(hits)}
