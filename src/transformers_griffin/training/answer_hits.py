"""
Whether the passes of a draft find the tokens of an answer, at all positions at once.

Decoding drafts along one chain at a time: from a root, pass 1 proposes the next token, pass 2 the one after it, and so
on, each pass reading what the draft itself wrote in the passes before. The passes of training do the same from every
position at the same time (`multi_pass.py`), so run over an answer of the target they tell how long the draft would
have stayed with it, whatever the tree. With x_P the first token of the answer, which the prefill yields::

    draft's position   P-1    P      P+1
    pass 1 looks for   x_P+1  x_P+2  x_P+3
    pass 2                    x_P+2  x_P+3       along the chain from position P-1: x_P+1, x_P+2, x_P+3
    pass 3                           x_P+3

Next: `acceptance.py`.
"""

import torch
from transformers import PreTrainedModel

from ..modeling_griffin import GriffinDraftModel
from .features import draft_batch
from .losses import top_k_hit
from .objective import run_passes


@torch.no_grad()
def answer_hits(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    sequence: torch.Tensor,
    prompt_length: int,
    num_passes: int,
    top_k: tuple[int, ...],
) -> torch.Tensor:
    """
    Whether the answer's tokens are among the draft's most likely ones, by pass and position.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]): bound to it, in evaluation mode.
        sequence (`torch.LongTensor` of shape `(1, length)`): prompt and answer.
        prompt_length (`int`): tokens of the prompt.
        num_passes (`int`): passes; drafts with several layers have one.
        top_k (`tuple[int, ...]`): for each of these k.

    Returns:
        `torch.BoolTensor` of shape `(len(top_k), num_passes, n_positions)`: for every token of the answer but the
        first, in order.
    """
    batch = draft_batch(target.base_model, sequence)
    positions = slice(prompt_length - 1, sequence.shape[1] - 2)
    hits = []
    for output in run_passes(draft, batch, num_passes):
        logits = draft.compute_logits(output.predict[0, positions])
        labels = batch.labels[0, positions].to(logits.device)
        hits.append(torch.stack([top_k_hit(logits, labels, k) for k in top_k]))
    return torch.stack(hits, dim=1)


def chains(hits: torch.Tensor) -> list[list[bool]]:
    """
    The hits along every chain of passes, from each position on; those at the end have fewer passes.

    Args:
        hits (`torch.BoolTensor` of shape `(num_passes, n_positions)`): of one k, see [`answer_hits`].

    Returns:
        `list[list[bool]]`, for [`misaligned_rates`].

    Example: the chains of two passes over three positions, `a b c` and `. e f`, are `a e`, `b f` and `c`.
    """
    num_passes, num_positions = hits.shape
    rows = hits.tolist()
    return [
        [rows[n][start + n] for n in range(min(num_passes, num_positions - start))] for start in range(num_positions)
    ]


__all__ = ["answer_hits", "chains"]
