"""
The ways to decode that a benchmark compares; each is a few arguments of `generate()`.

- plain: `generate()` as it is, with its dynamic cache;
- plain_compiled: static cache and compiled decoding steps, as `generate(cache_implementation="static")` does on a GPU.
  One cache serves all answers, so that nothing is compiled or captured again, and CPUs compile as well;
- prompt_lookup: n-grams of the prompt as drafts (`prompt_lookup_num_tokens`);
- sps: a small independent model drafts chains (speculative sampling), transformers' own assisted generation;
- a draft of this package under any name, with or without a compiled cycle.

Next: `plan.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import CompileConfig

from ..decoding.draft_head import head_dtype
from ..decoding.tree_settings import level_cost, tree_settings
from ..modeling_griffin import DEFAULT_TREE, GriffinDraftModel
from .answers import CycleCounter
from .results import Method


PLAIN, PLAIN_COMPILED, PROMPT_LOOKUP, ASSISTANT, DRAFT = KINDS = (
    "plain",
    "plain_compiled",
    "prompt_lookup",
    "assistant",
    "draft",
)
BUILT_IN = (PLAIN, PLAIN_COMPILED, PROMPT_LOOKUP)
PLAIN_KINDS = (PLAIN, PLAIN_COMPILED)
PROMPT_LOOKUP_TOKENS = 10  # our choice, that of transformers' documentation
CACHE_STEP = 64
COMPILED = "_compiled"  # ends the names of drafts with a compiled cycle


@dataclass(frozen=True)
class Decoder:
    """A [`Method`] that can run."""

    method: Method
    generate_kwargs: Callable[[int, int], dict[str, Any]]  # of batch size and longest sequence of all answers
    draft: GriffinDraftModel | None = None
    max_batch_size: int | None = None
    num_warmups: int = 1


def make_decoders(
    target: PreTrainedModel,
    methods: Iterable[str] = BUILT_IN,
    assistant: PreTrainedModel | None = None,
    drafts: Mapping[str, GriffinDraftModel] | None = None,
    compiles_drafts: bool = False,
) -> list[Decoder]:
    """
    The methods of a benchmark; plain decoding, which the others are compared with, is always the first.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target.
        methods (`Iterable[str]`): of "plain", "plain_compiled" and "prompt_lookup".
        assistant ([`~transformers.PreTrainedModel`], *optional*): a small model with the target's tokenizer.
        drafts (`Mapping[str, GriffinDraftModel]`, *optional*): drafts for this target, by name.
        compiles_drafts (`bool`, defaults to `False`):
            Whether every draft is measured a second time, as `NAME_compiled`, with a compiled cycle.

    Raises:
        ValueError: if a method is unknown, a name is taken twice, a draft does not fit the target or its tree settings
            form no tree, or the assistant has another vocabulary.
    """
    methods, drafts = list(methods), drafts or {}
    if unknown := [name for name in methods if name not in BUILT_IN]:
        raise ValueError(f"Unknown method {unknown[0]!r}; give {', '.join(BUILT_IN)}, an assistant or drafts by name.")
    compiled = {name + COMPILED: draft for name, draft in drafts.items()} if compiles_drafts else {}
    if taken := [name for name in drafts if name in (*BUILT_IN, "sps", *compiled)]:
        raise ValueError(f"A draft is called {taken[0]!r}, which is another method's name. Give it another name.")
    makers = {PLAIN: _plain, PLAIN_COMPILED: lambda: _plain_compiled(target), PROMPT_LOOKUP: _prompt_lookup}
    decoders = [make() for name, make in makers.items() if name == PLAIN or name in methods]
    if assistant is not None:
        decoders.append(_sps(target, assistant))
    decoders += [_draft(name, draft.bind(target)) for name, draft in drafts.items()]
    return decoders + [_compiled(_draft(name, draft)) for name, draft in compiled.items()]


def _plain() -> Decoder:
    return Decoder(Method(PLAIN, PLAIN, "generate(), dynamic cache, no compilation"), lambda *_: {})


def _plain_compiled(target: PreTrainedModel) -> Decoder:
    compile_config = _compile_everywhere()
    caches: dict[int, tuple[int, StaticCache]] = {}  # by batch size, with their lengths

    def generate_kwargs(batch_size: int, max_length: int) -> dict[str, Any]:
        length, _ = caches.get(batch_size, (0, None))
        if length < max_length:
            length = CACHE_STEP * math.ceil(max_length / CACHE_STEP)
            caches[batch_size] = length, StaticCache(config=target.config, max_cache_len=length)
        cache = caches[batch_size][1]
        cache.reset()
        return {"past_key_values": cache, "compile_config": compile_config}

    method = Method(PLAIN_COMPILED, PLAIN_COMPILED, "generate(), static cache, compiled decoding steps")
    return Decoder(method, generate_kwargs, num_warmups=2)


def _compiled(decoder: Decoder) -> Decoder:
    """A draft with a compiled cycle; the rooms of its caches are left open, so nothing has to be kept for it."""
    kwargs = compiled_cycle()
    return replace(
        decoder,
        method=replace(decoder.method, description=f"{decoder.method.description}, compiled cycle"),
        generate_kwargs=lambda *sizes: decoder.generate_kwargs(*sizes) | kwargs,
        num_warmups=2,
    )


def compiled_cycle() -> dict[str, Any]:
    """Arguments of `generate()` that compile the cycle, on CPUs as well."""
    return {"cache_implementation": "static", "compile_config": _compile_everywhere()}


def _compile_everywhere() -> CompileConfig:
    config = CompileConfig()
    config._compile_all_devices = True  # type: ignore[assignment]  # the switch for CPUs; no public one
    return config


def _prompt_lookup() -> Decoder:
    method = Method(PROMPT_LOOKUP, PROMPT_LOOKUP, f"n-grams of the prompt, up to {PROMPT_LOOKUP_TOKENS} tokens")
    return Decoder(
        method,
        lambda *_: {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS, "streamer": CycleCounter()},
        max_batch_size=1,
    )


def _sps(target: PreTrainedModel, assistant: PreTrainedModel) -> Decoder:
    sizes = [model.config.get_text_config(decoder=True).vocab_size for model in (assistant, target)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The assistant has a vocabulary of {sizes[0]} tokens, the target of {sizes[1]}. Give an assistant with "
            "the target's tokenizer."
        )
    method = Method("sps", ASSISTANT, "a small independent model, transformers' assisted generation")
    return Decoder(
        _with_size(method, assistant),
        lambda *_: {"assistant_model": assistant, "streamer": CycleCounter()},
        max_batch_size=1,
    )


def _draft(name: str, draft: GriffinDraftModel) -> Decoder:
    settings = tree_settings(draft.generation_config, draft.config.proposal_vocab_size)
    outputs = "two outputs" if draft.config.dual_head else "one output"
    cost = level_cost(draft.generation_config)
    size = draft.config.draft_vocab_size
    more = "" if size is None else f", proposes {size} of {draft.config.vocab_size} tokens"
    more += "" if head_dtype(draft.generation_config) is None else ", drafts from the head in int8"
    more += "" if cost is None else f", depth adapts (level cost {cost:.3g})"
    method = Method(
        name,
        DRAFT,
        f"draft of {draft.config.num_hidden_layers} layer(s), {draft.config.fusion} fusion, {outputs}{more}",
        tree=dict(zip(DEFAULT_TREE, settings, strict=True)),
    )
    return Decoder(_with_size(method, draft), lambda *_: {"assistant_model": draft}, draft)


def _with_size(method: Method, model: PreTrainedModel) -> Method:
    return replace(method, num_parameters=sum(parameter.numel() for parameter in model.parameters()))


__all__ = ["BUILT_IN", "KINDS", "PLAIN", "PLAIN_KINDS", "Decoder", "compiled_cycle", "make_decoders"]
