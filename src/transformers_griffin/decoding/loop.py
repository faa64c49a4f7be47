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
from .kv_cache import crop_last, keep_path, prepare_for_tree
from .outputs import GriffinGenerateOutput, OutputRecorder, wanted_outputs
from .target_forward import TargetForward
from .verification import Acceptance, accept_path, walk_path


@torch.no_grad()
def decode_with_draft(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: GriffinDraftModel,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> GriffinGenerateOutput | torch.LongTensor:
    """
    Generates with a GRIFFIN draft; called by `generate()` with everything prepared.

    Args:
        target ([`~transformers.PreTrainedModel`]): the model whose output must not change.
        input_ids (`torch.LongTensor` of shape `(1, length)`): the prompt.
        logits_processor, stopping_criteria, generation_config, streamer: as in `generate()`.
        draft ([`GriffinDraftModel`]): made for this target.

    Returns:
        `torch.LongTensor` of shape `(1, total_length)`, or [`GriffinGenerateOutput`].

    Raises:
        ValueError: for settings that GRIFFIN decoding does not support; each message says what to do instead.
    """
    check_supported(target, input_ids, generation_config, synced_gpus, model_kwargs)
    draft.bind(target)
    generator = GriffinCandidateGenerator(draft)
    recorder = OutputRecorder(generation_config)
    chooser = TokenChooser(logits_processor, generation_config.do_sample, record_scores=recorder.scores is not None)
    stop_checker = StopChecker(stopping_criteria)
    forward = TargetForward(target, generation_config, model_kwargs | wanted_outputs(generation_config))
    if forward.verifies_trees:
        prepare_for_tree(forward.cache, generator.num_nodes, _longest(input_ids, model_kwargs, generation_config))
    else:
        generator.make_chain()
    acceptance_lengths: list[int] = []

    # 0. Prefill: the first token, and every feature of the prompt.
    outputs, features = forward.prefill(input_ids)
    recorder.add_prefill(outputs)
    first_token = chooser(outputs.logits[:, -1], input_ids)
    padding_mask = _prompt_padding(model_kwargs, features.shape[1])
    draft_inputs = _first_draft_inputs(draft, input_ids, first_token, features.shape[1], model_kwargs)
    del outputs
    new_tokens = first_token.tolist()
    input_ids, num_kept, is_finished = _emit(input_ids, new_tokens, chooser, recorder, stop_checker, streamer)

    with forward.tree_attention():
        while not is_finished:
            # 1. Draft
            tree = generator.draft_tree(*draft_inputs[:1], features, padding_mask, *draft_inputs[1:])
            # 2. Verify
            outputs, node_features = forward.verify(tree, input_ids)
            # 3. Accept
            acceptance = _accept(tree, outputs.logits, input_ids, chooser, generator.path_length)
            new_tokens = _read_path(acceptance)
            input_ids, num_kept, is_finished = _emit(
                input_ids, new_tokens, chooser, recorder, stop_checker, streamer
            )
            acceptance_lengths.append(num_kept)
            # 4. Keep caches
            path = acceptance.nodes[:, :num_kept]
            recorder.add_cycle(outputs, path, forward.cache_length)
            if forward.verifies_trees:
                keep_path(forward.cache, acceptance.nodes, num_kept, tree.tokens.shape[1])
            else:
                crop_last(forward.cache, tree.tokens.shape[1] - num_kept)
            forward.cache_length += num_kept
            rows = path.to(node_features.device).unsqueeze(-1).expand(-1, -1, node_features.shape[-1])
            features, padding_mask = node_features.gather(1, rows), None
            draft_inputs = (input_ids[:, -num_kept:],)
            # 5. Stop? `is_finished` was decided on the host together with what to keep.
            del outputs, node_features

    if streamer is not None:
        streamer.end()
    return recorder.finish(input_ids, forward.cache, [acceptance_lengths])


def _accept(
    tree: DraftTree, logits: torch.Tensor, input_ids: torch.LongTensor, chooser: TokenChooser, path_length: int
) -> Acceptance:
    if chooser.is_argmax and not chooser.record_scores:
        return accept_path(tree, logits.argmax(dim=-1).to(tree.tokens.device), path_length)
    return walk_path(tree, logits, input_ids, chooser, path_length, ask_host=chooser.needs_true_prefixes)


def _read_path(acceptance: Acceptance) -> list[int]:
    """The tokens that the target chose along the accepted path: the one place where the host waits for the device."""
    length, *tokens = torch.cat((acceptance.lengths.unsqueeze(1), acceptance.tokens), dim=1)[0].tolist()
    return tokens[:length]


def _emit(
    input_ids: torch.LongTensor,
    new_tokens: list[int],
    chooser: TokenChooser,
    recorder: OutputRecorder,
    stop_checker: StopChecker,
    streamer: BaseStreamer | None,
) -> tuple[torch.LongTensor, int, bool]:
    """Appends what belongs to the answer; returns the sequence, how many tokens were appended, and whether it ends."""
    appended = torch.tensor([new_tokens], dtype=input_ids.dtype).to(input_ids.device, non_blocking=True)
    all_ids = torch.cat((input_ids, appended), dim=1)
    scores = None
    if recorder.scores is not None:
        scores = recorder.scores + chooser.take_scores(len(new_tokens))
    num_kept, is_finished = stop_checker.count_kept(all_ids, new_tokens, scores)
    if scores is not None:
        recorder.scores = scores[: len(scores) - len(new_tokens) + num_kept]
    if streamer is not None:
        streamer.put(torch.tensor([new_tokens[:num_kept]]))
    return all_ids[:, : input_ids.shape[1] + num_kept], num_kept, is_finished


def _longest(input_ids: torch.LongTensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig) -> int:
    """Tokens of the longest sequence that the cache may come to hold."""
    embeds = model_kwargs.get("inputs_embeds")
    prompt_as_embeds = 0 if embeds is None else embeds.shape[1] - input_ids.shape[1]
    past = int(model_kwargs["past_key_values"].get_seq_length())
    return max(generation_config.max_length + prompt_as_embeds, past + input_ids.shape[1])


def _prompt_padding(model_kwargs: dict[str, Any], num_read: int) -> torch.Tensor | None:
    mask = model_kwargs.get("attention_mask")
    return None if mask is None else mask[:, -num_read:]


def _first_draft_inputs(
    draft: GriffinDraftModel,
    input_ids: torch.LongTensor,
    first_token: torch.LongTensor,
    num_read: int,
    model_kwargs: dict[str, Any],
) -> tuple[torch.Tensor, ...]:
    """Tokens of the prompt's pairs (x_1 .. x_L for F_0 .. F_{L-1}), and their embeddings if the prompt came as such."""
    root = first_token.unsqueeze(-1)
    inputs_embeds = model_kwargs.get("inputs_embeds")
    if inputs_embeds is None:
        return (torch.cat((input_ids, root), dim=1)[:, -num_read:],)
    embeds = inputs_embeds[:, inputs_embeds.shape[1] - num_read + 1 :].to(device=draft.device, dtype=draft.dtype)
    return root, torch.cat((embeds, draft.embed_tokens(root)), dim=1)


def check_supported(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    synced_gpus: bool,
    model_kwargs: dict[str, Any],
) -> None:
    """Refuses what GRIFFIN decoding cannot do, before anything is computed."""
    if target.config.is_encoder_decoder:
        raise ValueError(
            f"{type(target).__name__} is an encoder-decoder model; GRIFFIN drafts speed up decoder-only models. "
            "Call `generate()` without `assistant_model`."
        )
    if input_ids.shape[0] > 1:
        raise ValueError(
            f"The batch has {input_ids.shape[0]} rows, but GRIFFIN decoding takes 1. Call `generate()` once per prompt, "
            "or without `assistant_model`."
        )
    if synced_gpus:
        raise ValueError("GRIFFIN decoding does not support `synced_gpus`; call `generate()` without `assistant_model`.")
    if not model_kwargs.get("use_cache") or model_kwargs.get("past_key_values") is None:
        raise ValueError("GRIFFIN decoding needs a key-value cache; call `generate()` with `use_cache=True`.")


__all__ = ["check_supported", "decode_with_draft"]
