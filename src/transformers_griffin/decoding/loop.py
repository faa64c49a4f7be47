"""
The draft-verify-accept loop.

One cycle: 1. draft a tree, 2. verify it with one forward of the target, 3. accept a path, 4. keep its cache entries,
5. stop? The host waits for the device once, in step 3, to read which path it is.

It knows no model: what differs between targets is in `target_forward.py`, between greedy and sampling in `choice.py`.

Next: `generate_hook.py`.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..modeling_griffin import GriffinDraftModel
from .candidate_generator import GriffinCandidateGenerator
from .choice import StopChecker, TokenChooser
from .draft_tree import DraftTree
from .kv_cache import crop_last, keep_path, prepare_for_tree, stop_recording
from .outputs import GriffinGenerateOutput, OutputRecorder, wants_scores
from .target_forward import TargetForward, check_rotary_frequencies
from .verification import Acceptance, accept_path, walk_path


@torch.no_grad()
def decode_with_draft(
    target: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: GriffinDraftModel,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> GriffinGenerateOutput | torch.Tensor:
    """
    Generates with a GRIFFIN draft; called by `generate()` with everything prepared and checked.

    Args:
        target ([`~transformers.PreTrainedModel`]): the model whose output must not change.
        input_ids (`torch.LongTensor` of shape `(1, length)`): the prompt.
        logits_processor, stopping_criteria, generation_config, streamer: as in `generate()`.
        draft ([`GriffinDraftModel`]): made for this target, and bound to it.

    Returns:
        `torch.LongTensor` of shape `(1, total_length)`, or [`GriffinGenerateOutput`].
    """
    generator = GriffinCandidateGenerator(draft)
    chooser = TokenChooser(logits_processor, generation_config.do_sample, wants_scores(generation_config))
    answer = Answer(input_ids, chooser, StopChecker(stopping_criteria, input_ids.shape[1]), streamer)
    prompt_length, max_length = _lengths(input_ids, model_kwargs, generation_config)
    check_rotary_frequencies(target, prompt_length, max_length)
    forward = TargetForward(target, generation_config, model_kwargs, max_length)
    recorder = OutputRecorder(generation_config, forward.cache)
    if forward.verifies_trees:
        prepare_for_tree(forward.cache, generator.num_nodes, max_length)
    else:
        generator.make_chain()
    acceptance_lengths: list[int] = []

    # 0. Prefill: the first token, and every feature of the prompt.
    outputs, features = forward.prefill(input_ids)
    recorder.add_prefill(outputs, forward.cache_length)
    first_token = chooser(outputs.logits[:, -1], input_ids).unsqueeze(-1)
    answer.append(first_token)
    draft_inputs: dict[str, Any] = _prompt_pairs(draft, input_ids, first_token, features, model_kwargs)
    del outputs

    with forward.tree_attention():
        while not answer.is_finished:
            # 1. Draft
            tree = forward.shorten(generator.draft_tree(**draft_inputs))
            # 2. Verify
            outputs, node_features = forward.verify(tree, answer.sequence)
            # 3. Accept
            acceptance = answer.accept(tree, outputs.logits, generator.path_length)
            num_kept = answer.append(acceptance.tokens, acceptance.lengths)
            acceptance_lengths.append(num_kept)
            # 4. Keep caches
            path = acceptance.nodes[:, :num_kept]
            recorder.add_cycle(outputs, path, forward.cache_length)
            _keep_in_cache(forward, acceptance, num_kept, tree)
            rows = path.to(node_features.device).unsqueeze(-1).expand(-1, -1, node_features.shape[-1])
            draft_inputs = {"tokens": answer.sequence[:, -num_kept:], "features": node_features.gather(1, rows)}
            # 5. Stop? The answer knows: the host decided it together with what to keep.
            del outputs, node_features

    stop_recording(forward.cache)
    if streamer is not None:
        streamer.end()
    return recorder.finish(answer.sequence, chooser.scores, forward.cache, [acceptance_lengths])


class Answer:
    """
    The prompt with what was generated so far; grows by what the target chose until a criterion ends it.

    Args:
        sequence (`torch.LongTensor` of shape `(1, length)`): the prompt.
    """

    def __init__(
        self,
        sequence: torch.Tensor,
        chooser: TokenChooser,
        stop_checker: StopChecker,
        streamer: BaseStreamer | None = None,
    ):
        self.sequence = sequence
        self.chooser = chooser
        self.stop_checker = stop_checker
        self.streamer = streamer

    @property
    def is_finished(self) -> bool:
        """Whether the last token ended the answer."""
        return self.stop_checker.is_finished

    def accept(self, tree: DraftTree, logits: torch.Tensor, path_length: int) -> Acceptance:
        """The path that the target chooses; on the way, processors and criteria see what plain decoding shows them."""
        if self.chooser.is_argmax:
            return accept_path(tree, logits.argmax(dim=-1).to(tree.tokens.device), path_length)
        ask_host = self.chooser.needs_true_prefixes
        return walk_path(tree, logits, self.sequence, self.chooser, path_length, ask_host, self._ends_with)

    def append(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> int:
        """
        Appends what belongs to the answer. Here, and only here, the host waits for the device.

        Args:
            tokens (`torch.LongTensor` of shape `(1, path)`): what the target chose.
            lengths (`torch.LongTensor` of shape `(1,)`, *optional*): how many of them count; all when not given.

        Returns:
            how many tokens were appended.
        """
        on_host = tokens if lengths is None else torch.cat((tokens, lengths.unsqueeze(1)), dim=1)
        new_tokens = on_host[0].tolist()
        if lengths is not None:
            new_tokens = new_tokens[: new_tokens[-1]]
        longest = torch.cat((self.sequence, tokens[:, : len(new_tokens)].to(self.sequence.device)), dim=1)
        num_kept = self.stop_checker.count_kept(longest, new_tokens, self.chooser.scores)
        self.sequence = longest[:, : self.sequence.shape[1] + num_kept]
        self.chooser.keep_scores(self.stop_checker.num_checked)
        if self.streamer is not None:
            self.streamer.put(torch.tensor([new_tokens[:num_kept]]))
        return num_kept

    def _ends_with(self, sequence: torch.Tensor) -> bool:
        return self.stop_checker.ask(sequence, int(sequence[0, -1]), self.chooser.scores)


def _keep_in_cache(forward: TargetForward, acceptance: Acceptance, num_kept: int, tree: DraftTree) -> None:
    num_nodes = tree.tokens.shape[1]
    if forward.verifies_trees:
        keep_path(forward.cache, acceptance.nodes, num_kept, num_nodes)
    else:
        crop_last(forward.cache, num_nodes - num_kept)
    forward.cache_length += num_kept


def _lengths(
    input_ids: torch.Tensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig
) -> tuple[int, int]:
    """Tokens of the prompt, with those that a given cache holds, and of the longest sequence that may come of it."""
    embeds, mask = model_kwargs.get("inputs_embeds"), model_kwargs.get("attention_mask")
    prompt_length = input_ids.shape[1] if embeds is None else embeds.shape[1]
    # The mask covers what the cache holds. `generate()` drops one without padding, but remembers its length.
    mask_length = getattr(generation_config, "_mask_length", prompt_length) if mask is None else mask.shape[1]
    if mask_length != prompt_length:  # only the new tokens were passed
        prompt_length += int(model_kwargs["past_key_values"].get_seq_length())
    return prompt_length, prompt_length + generation_config.max_length - input_ids.shape[1]


def _prompt_pairs(
    draft: GriffinDraftModel,
    input_ids: torch.Tensor,
    first_token: torch.Tensor,
    features: torch.Tensor,
    model_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """What the draft reads first: x_1 .. x_L for F_0 .. F_{L-1}, as embeddings where the prompt came as such."""
    num_read = features.shape[1]
    mask, inputs_embeds = model_kwargs.get("attention_mask"), model_kwargs.get("inputs_embeds")
    token_embeds = None
    if inputs_embeds is not None:
        embeds = inputs_embeds[:, inputs_embeds.shape[1] - num_read + 1 :].to(device=draft.device, dtype=draft.dtype)
        token_embeds = torch.cat((embeds, draft.embed_tokens(first_token)), dim=1)
    return {
        "tokens": torch.cat((input_ids, first_token), dim=1)[:, -num_read:],
        "features": features,
        "padding_mask": None if mask is None else mask[:, -num_read:],
        "token_embeds": token_embeds,
    }


__all__ = ["decode_with_draft"]
