"""
The draft-verify-accept loop.

One cycle: 1. draft a tree, 2. verify it with one forward of the target, 3. accept a path, 4. keep its cache entries,
5. stop? The host waits for the device once, in step 3, to read which path it is. The rows of a batch share all
forwards; each accepts a path of its own, and leaves the batch when it has ended.

It knows no model: what differs between targets is in `target_forward.py`, between greedy and sampling in `choice.py`,
between one prompt and a batch in `answer.py` and `kv_cache.py`.

Next: `generate_hook.py`.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..modeling_griffin import GriffinDraftModel
from .answer import Answer
from .candidate_generator import GriffinCandidateGenerator
from .choice import TokenChooser
from .compiled import CompiledCandidateGenerator, CompiledTargetForward, compile_config_for
from .finished_rows import FinishedRows, can_drop_rows
from .kv_cache import prepare_for_tree, stop_growing
from .outputs import GriffinGenerateOutput, OutputRecorder, wants_scores
from .prompt_pairs import PromptPairs
from .target_forward import TargetForward, check_rotary_frequencies


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
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): the prompts, padded on the left.
        logits_processor, stopping_criteria, generation_config, streamer: as in `generate()`.
        draft ([`GriffinDraftModel`]): made for this target, and bound to it.

    Returns:
        `torch.LongTensor` of shape `(batch_size, total_length)`, or [`GriffinGenerateOutput`].
    """
    batch_size = input_ids.shape[0]
    prompt_length, max_length = _lengths(input_ids, model_kwargs, generation_config)
    check_rotary_frequencies(target, prompt_length, max_length)
    generator, forward = _draft_and_target(draft, target, batch_size, max_length, generation_config, model_kwargs)
    chooser = TokenChooser(logits_processor, generation_config.do_sample, wants_scores(generation_config))
    pad_token = None if generation_config._pad_token_tensor is None else int(generation_config._pad_token_tensor)
    answer = Answer(input_ids, chooser, stopping_criteria, pad_token, forward.verifies_trees, streamer)
    recorder = OutputRecorder(generation_config, forward.cache, batch_size)
    if forward.verifies_trees:
        prepare_for_tree(forward.cache, generator.num_nodes, max_length, forward.capacity_step)
    else:
        generator.make_chain()

    # 0. Prefill: the first token, and the prompt's features, which the draft reads chunk by chunk, too.
    pairs = PromptPairs(draft, input_ids, model_kwargs, prompt_length - int(forward.cache.get_seq_length()))
    outputs, features = forward.prefill(input_ids, lambda chunk: generator.read_chunk(**pairs.of_chunk(chunk)))
    recorder.add_prefill(outputs, forward.cache_length)
    first_token = answer.choose(outputs.logits[:, -1], input_ids).unsqueeze(-1)
    num_kept = answer.append(first_token)
    recorder.add_scores(answer.new_scores, num_kept, answer.rows)
    draft_inputs: dict[str, Any] = pairs.of_last_chunk(features, first_token)
    del outputs, features

    finished = FinishedRows(forward.cache) if _outlives(forward.cache, recorder) else None
    with forward.tree_attention():
        while not answer.is_finished:
            draft_inputs = _drop_ended_rows(answer, forward, generator, draft_inputs, finished)
            # 1. Draft
            generator.choose_depth()
            tree = forward.shorten(generator.draft_tree(**draft_inputs))
            del draft_inputs
            # 2. Verify
            outputs, node_features = forward.verify(tree, answer.sequence)
            # 3. Accept
            acceptance = answer.accept(tree, outputs.logits, generator.path_length)
            num_kept = answer.append(acceptance.tokens, acceptance.lengths)
            generator.learn_depth(num_kept)
            # 4. Keep
            recorder.add_scores(answer.new_scores, num_kept, answer.rows)
            recorder.add_cycle(outputs, acceptance.nodes, num_kept, answer.rows, forward.lengths)
            draft_inputs = generator.new_pairs(acceptance, node_features, num_kept, answer.is_row_wise)
            # Rows in step keep as many entries each, those that have ended, too.
            num_cached = [max(num_kept)] * len(num_kept) if answer.in_step else num_kept
            forward.keep(acceptance.nodes, num_cached, tree.tokens.shape[1])
            # 5. Stop? The answer knows: the host decided it together with what to keep.
            del outputs, node_features

        if finished is not None and not answer.in_step:
            forward.read_last_tokens(answer.last_tokens(), finished.put_back(answer.rows, forward.lengths))

    stop_growing(forward.cache)
    if streamer is not None:
        streamer.end()
    return recorder.finish(answer.sequences(), forward.cache)


def _draft_and_target(
    draft: GriffinDraftModel,
    target: PreTrainedModel,
    batch_size: int,
    max_length: int,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> tuple[GriffinCandidateGenerator, TargetForward]:
    """Both halves of a cycle, compiled where plain decoding would be."""
    compile_config = compile_config_for(target, generation_config, model_kwargs)
    generator: GriffinCandidateGenerator
    forward: TargetForward
    if compile_config is None:
        generator = GriffinCandidateGenerator(draft, batch_size=batch_size)
        forward = TargetForward(target, generation_config, model_kwargs, max_length)
    else:
        generator = CompiledCandidateGenerator(draft, batch_size, max_length, compile_config)
        trees = generator.sizes, generator.path_length
        forward = CompiledTargetForward(target, generation_config, model_kwargs, max_length, compile_config, *trees)
    return generator, forward


def _outlives(cache: Any, recorder: OutputRecorder) -> bool:
    """Whether somebody sees the cache after the call: it is returned, or the user's own."""
    return recorder.returns_dict or getattr(cache, "_is_user_defined", False)


def _drop_ended_rows(
    answer: Answer,
    forward: TargetForward,
    generator: GriffinCandidateGenerator,
    draft_inputs: dict[str, Any],
    finished: FinishedRows | None,
) -> dict[str, Any]:
    """Takes rows that have ended out of the batch, where the cache allows it; returns what the draft reads next."""
    staying = answer.staying
    # Rows in step go on reading, as in plain decoding, where somebody may ask for what they have read.
    can_drop = can_drop_rows(forward.cache) and (finished is None or not answer.in_step)
    if len(staying) == len(answer.rows) or not can_drop:
        return draft_inputs
    if finished is not None:
        for index in set(range(len(answer.rows))) - set(staying):
            finished.take(index, answer.rows[index], forward.lengths[index])
    for part in (answer, forward, generator):
        part.keep_rows(staying)
    return {
        name: [value[i] for i in staying] if isinstance(value, list) else None if value is None else value[staying]
        for name, value in draft_inputs.items()
    }


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


__all__ = ["decode_with_draft"]
