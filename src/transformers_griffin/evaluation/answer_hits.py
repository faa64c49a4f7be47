"""
Whether the passes of a draft find the tokens of an answer, on chains from all positions at once.

Decoding drafts along one chain at a time: from a root, pass 1 proposes the next token, pass 2 the one after it, and so
on, each pass reading what the draft itself wrote in the passes before. Here a chain starts at every position of a
known answer and is led along its tokens, so it tells how long the draft would have stayed with the answer, whatever
the tree. With x_P the first token of the answer, which the prefill yields::

    chain from      P-1    P      P+1
    pass 1 looks for   x_P+1  x_P+2  x_P+3
    pass 2             x_P+2  x_P+3
    pass 3             x_P+3

Pass 1 is one forward over prompt and answer. Each later pass is one forward over a node for every chain, which sees
the verified pairs up to the chain's start, its own earlier nodes and itself, like a level of a draft tree.

Notation for shapes: `n_chains`, one for every token of the answer but the first.

Next: `metrics.py`.
"""

import torch
from transformers import PreTrainedModel

from ..decoding.draft_head import DraftHead, head_dtype
from ..decoding.draft_tree import as_attention_mask
from ..modeling_griffin import GriffinDraftModel
from .replay import know_answers


MISALIGNED_TOP_K = 3  # a token is misaligned if it is not among so many best ones; as in the released alignment mask


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
    Whether the answer's tokens are among the draft's most likely ones, by pass and chain.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        draft ([`GriffinDraftModel`]): bound to it, in evaluation mode.
        sequence (`torch.LongTensor` of shape `(1, length)`): prompt and answer.
        prompt_length (`int`): tokens of the prompt.
        num_passes (`int`): passes.
        top_k (`tuple[int, ...]`): for each of these k.

    Returns:
        `torch.BoolTensor` of shape `(len(top_k), num_passes, n_chains)`: False where a chain has left the answer's end
        behind; [`chains`] cuts that off.
    """
    features = know_answers(target, [sequence[0]], [prompt_length]).features[:, :-1]
    head = DraftHead(draft, head_dtype(draft.generation_config))
    tokens = sequence[0].to(draft.device)
    starts = torch.arange(prompt_length - 1, tokens.shape[0] - 2, device=draft.device)
    if len(starts) == 0:
        return torch.zeros(len(top_k), num_passes, 0, dtype=torch.bool)
    output = draft(
        input_ids=tokens[None, 1:], features=features.to(device=draft.device, dtype=draft.dtype), use_cache=True
    )
    cache, predict, regress = output.past_key_values, output.predict[:, starts], output.regress[:, starts]
    hits = [_is_found(head, predict, tokens, starts + 2, top_k)]

    columns = torch.arange(tokens.shape[0] - 1, device=draft.device)
    itself = torch.eye(len(starts), dtype=torch.bool, device=draft.device)
    sees = columns <= starts.unsqueeze(1)  # (n_chains, verified pairs); grows by a level with every pass
    for n in range(2, num_passes + 1):
        sees = torch.cat((sees, itself), dim=1)
        output = draft(
            input_ids=tokens[None, (starts + n).clamp(max=tokens.shape[0] - 1)],
            features=regress,
            position_ids=(starts + n - 1).unsqueeze(0),
            attention_mask=as_attention_mask(sees[None, None], draft.config._attn_implementation, draft.dtype),
            past_key_values=cache,
        )
        regress = output.regress
        hits.append(_is_found(head, output.predict, tokens, starts + n + 1, top_k))
    return torch.stack(hits, dim=1).cpu()


def _is_found(
    head: DraftHead,
    predict: torch.Tensor,
    tokens: torch.Tensor,
    indices: torch.Tensor,
    top_k: tuple[int, ...],
) -> torch.Tensor:
    """`(len(top_k), n_chains)`: whether the tokens at `indices` are among the k best; False behind the end."""
    is_inside = indices < len(tokens)
    num_best = min(max(top_k), head.draft.config.proposal_vocab_size)
    best = head.logits(predict[0]).topk(num_best, dim=-1).indices
    best = head.draft.to_target_ids(best).to(tokens.device)
    is_best = best == tokens[indices.clamp(max=len(tokens) - 1)].unsqueeze(1)  # (n_chains, max k)
    return torch.stack([is_best[:, :k].any(dim=1) & is_inside for k in top_k])


def chains(hits: torch.Tensor) -> list[list[bool]]:
    """
    The hits along every chain; those at the end have fewer passes.

    Args:
        hits (`torch.BoolTensor` of shape `(num_passes, n_chains)`): of one k, see [`answer_hits`].

    Returns:
        `list[list[bool]]`, for [`misaligned_rates`].
    """
    num_chains = hits.shape[1]
    return [chain[: num_chains - start] for start, chain in enumerate(hits.T.tolist())]


__all__ = ["MISALIGNED_TOP_K", "answer_hits", "chains"]
