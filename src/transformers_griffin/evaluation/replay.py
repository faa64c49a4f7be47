"""
How many tokens every cycle would have emitted, on answers that are known already: decoding without the target.

What a draft proposes depends on nothing but the verified prefix, and what the target accepts is its own answer. So
with an answer and the features of the target at hand, the cycles of `generate()` can be played again, and *exactly*
its acceptance lengths come out, greedy or sampled: at the root the tree is drafted, and the path that the answer
itself takes through the tree is the one that would have been accepted.

That is much cheaper than decoding. The target runs once over whole answers, one pass of the draft serves all cycles
of a batch of answers, and many answers draft their trees at the same time. All drafts of a comparison see the same
answers, so what differs is theirs. It measures no time: speed needs real runs (`answers.py`).

Notation for shapes: `batch_size` answers; `length` tokens of the longest one with its prompt; d = `hidden_size`.

Next: `metrics.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..decoding.candidate_generator import GriffinCandidateGenerator
from ..decoding.draft_tree import CandidatePool, DraftTree, build_tree
from ..decoding.verification import accept_path
from ..modeling_griffin import GriffinDraftModel


NO_TOKEN = -1  # behind the end of an answer; no node carries it


@dataclass(frozen=True)
class KnownAnswers:
    """Answers of a target with its features, padded on the right."""

    tokens: torch.Tensor  # (batch_size, length): prompt and answer, then NO_TOKEN
    features: torch.Tensor  # (batch_size, length, hidden_size): the target's F
    prompt_lengths: torch.Tensor  # (batch_size,)


@torch.no_grad()
def know_answers(
    target: PreTrainedModel, sequences: Sequence[torch.Tensor], prompt_lengths: list[int]
) -> KnownAnswers:
    """
    Reads the target's features of its own answers, with one forward.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        sequences (`Sequence[torch.LongTensor]`, each of shape `(length_i,)`): prompt and answer, without padding.
        prompt_lengths (`list[int]`): tokens of each prompt.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=NO_TOKEN)
    outputs = target.base_model(
        input_ids=tokens.clamp(min=0), attention_mask=(tokens != NO_TOKEN).long(), use_cache=False
    )
    return KnownAnswers(tokens, outputs.last_hidden_state, torch.tensor(prompt_lengths, device=tokens.device))


@torch.no_grad()
def replay_acceptance(
    draft: GriffinDraftModel, answers: KnownAnswers, generation_config: GenerationConfig | None = None
) -> list[list[int]]:
    """
    The acceptance lengths of `generate(assistant_model=draft)`, for answers that are known and trees that all have
    `draft_tree_depth` levels (`draft_level_cost` is not looked at).

    Args:
        draft ([`GriffinDraftModel`]): bound to the target.
        answers ([`KnownAnswers`]): a batch of them.
        generation_config ([`~transformers.GenerationConfig`], *optional*): tree settings; the draft's by default.

    Returns:
        `list[list[int]]`: tokens emitted by every cycle of every answer.
    """
    generator = GriffinCandidateGenerator(draft, generation_config)
    tokens, roots = answers.tokens, answers.prompt_lengths.clone()
    last = (tokens != NO_TOKEN).sum(dim=1) - 1
    features = answers.features[:, :-1].to(device=draft.device, dtype=draft.dtype)
    output = draft(input_ids=tokens[:, 1:].clamp(min=0), features=features, use_cache=True)
    predict, regress, generator.cache = output.predict, output.regress, output.past_key_values
    rows = torch.arange(tokens.shape[0], device=tokens.device)

    lengths: list[list[int]] = [[] for _ in rows]
    while len(rows) > 0:
        is_open = roots < last
        if not is_open.all():  # finished answers leave the batch
            left = is_open.nonzero().squeeze(-1)
            generator.cache.batch_select_indices(left)
            tokens, roots, last, predict, regress, rows = (
                values[left] for values in (tokens, roots, last, predict, regress, rows)
            )
            continue
        pool = grow_at(generator, roots, predict, regress, tokens.device)
        tree = build_tree(tokens.gather(1, roots.unsqueeze(1)), pool, generator.num_nodes, generator.depth)
        choices = _answer_after(tree, tokens, roots)
        emitted = accept_path(tree, choices, generator.path_length).lengths.minimum(last - roots)
        for row, length in zip(rows.tolist(), emitted.tolist(), strict=True):
            lengths[row].append(length)
        roots = roots + emitted
    return lengths


def grow_at(
    generator: GriffinCandidateGenerator,
    roots: torch.Tensor,
    predict: torch.Tensor,
    regress: torch.Tensor,
    pool_device: torch.device,
) -> CandidatePool:
    """
    Grows a tree's candidates under a token of every row, from a pass over the whole rows.

    Args:
        generator ([`GriffinCandidateGenerator`]): its cache holds that pass.
        roots (`torch.LongTensor` of shape `(batch_size,)`): the tokens' positions.
        predict, regress (`torch.Tensor` of shape `(batch_size, pairs, hidden_size)`): results of that pass; the pair
            of a root and the feature before it stands one position earlier than the root.
    """
    columns = torch.arange(predict.shape[1], device=roots.device)
    generator.padding_mask = columns < roots.unsqueeze(1)
    generator.next_position = roots.unsqueeze(1)
    newest = (roots - 1).view(-1, 1, 1).expand(-1, 1, predict.shape[-1])
    return generator.grow(predict.gather(1, newest), regress.gather(1, newest), pool_device)


def _answer_after(tree: DraftTree, tokens: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """The answer's token one level below each node; right for nodes on the answer's own path, which alone counts."""
    index = roots.unsqueeze(1) + 1 + tree.depths
    padded = torch.nn.functional.pad(tokens, (0, int(tree.depths.shape[1])), value=NO_TOKEN)
    return padded.gather(1, index)


__all__ = ["KnownAnswers", "grow_at", "know_answers", "replay_acceptance"]
