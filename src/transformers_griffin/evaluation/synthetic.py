"""
What decoding with a draft costs on this machine, without any weights: random ones in the shape of a real pair.

tau needs a trained draft, time does not: forwards of a shape take as long whatever its weights are. So the *cycle
cost* (one cycle over one step of plain decoding) can be had for models that are not at hand, and SR follows from any
tau: SR = tau / cycle cost.

Next: `profiling.py`.
"""

import json
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling_griffin import DEFAULT_TREE, GriffinDraftModel
from .answers import TimedBatch, answer_batch
from .cycle_timing import WHOLE_PARTS, CycleTime, record_parts
from .methods import COMPILED, DRAFT, PLAIN, PLAIN_COMPILED, Decoder, make_decoders
from .stopwatch import Stopwatch
from .synthetic_pair import MAX_POSITIONS, agreeing_target, build_pair
from .weight_reads import WeightReads, weight_reads


logger = logging.get_logger(__name__)

# tau over SR of the paper's Table 1 (A100, its own code), the mean over tasks at T=0.
PAPER_CYCLE_COSTS = {"llama-2-7b": 1.66, "llama-3-8b": 1.62, "qwen2-7b": 1.68}
PROMPT_LENGTHS = (128, 512, 2048, 8192, 16384)
DRAFTS = {DRAFT, DRAFT + COMPILED}


@dataclass(frozen=True)
class SyntheticRow:
    """One prompt length, with or without a compiled cycle; seconds are medians, and None is not measured."""

    prompt_length: int
    is_compiled: bool  # the cycle
    plain_step_seconds: float
    compiled_step_seconds: float | None  # static cache, compiled
    cycle_seconds: float
    draft_seconds: float
    verify_seconds: float
    host_seconds: float  # of a cycle: what drafting and verifying leave
    tokens_per_cycle: float  # with the target made to agree
    host_waits_per_cycle: float | None  # CUDA only
    plain_memory_bytes: int | None  # beyond the models; CUDA only
    draft_memory_bytes: int | None

    @property
    def cycle_cost(self) -> float:
        """Over a plain eager step."""
        return self.cycle_seconds / self.plain_step_seconds

    @property
    def compiled_cycle_cost(self) -> float | None:
        """Over a compiled step."""
        return self.cycle_seconds / self.compiled_step_seconds if self.compiled_step_seconds else None


@dataclass(frozen=True)
class SyntheticResults:
    """All prompt lengths of a shape."""

    shape: str
    dtype: str
    tree: dict[str, int]
    target_parameters: int
    draft_parameters: int
    rows: list[SyntheticRow]
    skipped: dict[int, str]  # prompt length -> why
    paper_cycle_cost: float | None
    draft_vocab_size: int | None = None  # tokens that the draft can propose; None is all
    draft_head_dtype: str | None = None  # format in which drafting reads the head; None is the head's own
    weight_reads: WeightReads | None = None  # computed: the floor under the cycle cost
    provenance: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        costs = [
            {"cycle_cost": row.cycle_cost, "compiled_cycle_cost": row.compiled_cycle_cost} | asdict(row)
            for row in self.rows
        ]
        return asdict(self) | {"rows": costs}

    def save(self, folder: str | Path) -> None:
        """Writes `synthetic.json` and `synthetic.md`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "synthetic.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "synthetic.md").write_text(as_markdown(self), encoding="utf-8")


# ---------------------------------------------------------------------- measuring


def measure_synthetic(
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    compiles: bool = True,
    repeats: int = 3,
    new_tokens: int = 64,
    time_budget: float = 600.0,
    draft_vocab_size: int | None = None,
    draft_head_dtype: str | None = None,
    provenance: dict[str, Any] | None = None,
) -> SyntheticResults:
    """
    Measures plain steps and cycles of a shape.

    Args:
        shape (`str`): one of `SHAPES`.
        dtype (`torch.dtype`): of all weights.
        device (`torch.device`): where to measure.
        prompt_lengths (`Sequence[int]`): short ones first: what the time does not suffice for is left out.
        compiles (`bool`, defaults to `True`): whether compiled steps and cycles are measured as well.
        repeats (`int`, defaults to 3): answers of every method, interleaved.
        new_tokens (`int`, defaults to 64): tokens of an answer.
        time_budget (`float`, defaults to 600): seconds; a length is skipped if one like the last would end later.
        draft_vocab_size (`int`, *optional*): how many tokens the draft can propose; all when not given.
        draft_head_dtype (`str`, *optional*): `"int8"`, or the head's own format.
        provenance (`dict`, *optional*): to store beside the results.

    Raises:
        ValueError: if the shape is unknown or has fewer tokens, or a prompt has no room in it.
    """
    too_long = [length for length in prompt_lengths if length + 2 * new_tokens > MAX_POSITIONS]
    if too_long:
        raise ValueError(f"A prompt of {too_long[0]} tokens is too long: {MAX_POSITIONS - 2 * new_tokens} at most.")
    stopwatch = Stopwatch(torch.device("cpu"))
    begin = stopwatch.mark()
    target, draft = build_pair(
        shape, dtype, device, draft_vocab_size=draft_vocab_size, draft_head_dtype=draft_head_dtype
    )
    rows: list[SyntheticRow] = []
    skipped: dict[int, str] = {}
    last_seconds = 0.0
    for length in prompt_lengths:
        start = stopwatch.mark()
        left = time_budget - stopwatch.between(begin, start)
        if last_seconds > left:
            skipped[length] = f"not measured: {left:.0f} s were left of {time_budget:.0f}"
            continue
        rows += _measure_length(target, draft, length, compiles, repeats, new_tokens)
        last_seconds = stopwatch.between(start, stopwatch.mark())
    return SyntheticResults(
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        tree={name: getattr(draft.generation_config, name) for name in DEFAULT_TREE},
        target_parameters=target.num_parameters(),
        draft_parameters=draft.num_parameters(),
        rows=rows,
        skipped=skipped,
        paper_cycle_cost=PAPER_CYCLE_COSTS.get(shape),
        draft_vocab_size=draft_vocab_size,
        draft_head_dtype=draft_head_dtype,
        weight_reads=weight_reads(target, draft),
        provenance=provenance or {},
    )


def _measure_length(
    target: PreTrainedModel,
    draft: GriffinDraftModel,
    prompt_length: int,
    compiles: bool,
    repeats: int,
    new_tokens: int,
) -> list[SyntheticRow]:
    prompt = torch.randint(target.config.vocab_size, (1, prompt_length), device=target.device)

    def answer(decoder: Decoder, num_tokens: int) -> TimedBatch:
        kwargs = decoder.generate_kwargs(1, prompt_length + new_tokens)
        settings = {"max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0} | kwargs
        return answer_batch(target, prompt, torch.ones_like(prompt), **settings)

    decoders = _warm_decoders(target, draft, compiles, lambda decoder: answer(decoder, min(16, new_tokens)))
    answers: dict[str, list[TimedBatch]] = {name: [] for name in decoders}
    cycles: dict[str, list[CycleTime]] = {name: [] for name in decoders}
    waits: dict[str, float | None] = {}
    with agreeing_target():
        for _ in range(repeats):
            for name, decoder in decoders.items():
                with record_parts(target.device, WHOLE_PARTS) as recording:
                    answers[name].append(answer(decoder, new_tokens))
                cycles[name] += recording.cycles()
        for name in DRAFTS & decoders.keys():
            waits[name] = _host_waits_per_cycle(partial(answer, decoders[name]), new_tokens, target.device)
    steps = {name: statistics.median(map(_step_seconds, answers[name])) for name in decoders.keys() - DRAFTS}
    memory = answers[PLAIN][-1].peak_memory_bytes
    return [
        _as_row(prompt_length, name, steps, memory, answers[name], cycles[name], waits[name]) for name in sorted(waits)
    ]


def _as_row(
    prompt_length: int,
    name: str,
    steps: dict[str, float],
    plain_memory: int | None,
    answers: list[TimedBatch],
    cycles: list[CycleTime],
    waits: float | None,
) -> SyntheticRow:
    lengths = [length for found in answers for row in found.acceptance_lengths or [] for length in row]
    return SyntheticRow(
        prompt_length=prompt_length,
        is_compiled=name.endswith(COMPILED),
        plain_step_seconds=steps[PLAIN],
        compiled_step_seconds=steps.get(PLAIN_COMPILED),
        cycle_seconds=statistics.median(cycle.total for cycle in cycles),
        draft_seconds=statistics.median(cycle.draft for cycle in cycles),
        verify_seconds=statistics.median(cycle.verify for cycle in cycles),
        host_seconds=statistics.median(cycle.total - cycle.draft - cycle.verify for cycle in cycles),
        tokens_per_cycle=statistics.fmean(lengths),
        host_waits_per_cycle=waits,
        plain_memory_bytes=plain_memory,
        draft_memory_bytes=answers[-1].peak_memory_bytes,
    )


def _warm_decoders(
    target: PreTrainedModel, draft: GriffinDraftModel, compiles: bool, answer: Callable[[Decoder], TimedBatch]
) -> dict[str, Decoder]:
    """The methods by name, compiled and warm; without those that cannot be compiled."""
    torch.compiler.reset()  # another length has another static cache: compile for that shape, not for any
    methods = [PLAIN, PLAIN_COMPILED] if compiles else [PLAIN]
    made = make_decoders(target, methods, drafts={DRAFT: draft}, compiles_drafts=compiles)
    decoders = {decoder.method.name: decoder for decoder in made}
    for name, decoder in list(decoders.items()):
        try:
            for _ in range(decoder.num_warmups):
                answer(decoder)
        except Exception as error:
            if not name.endswith(COMPILED):
                raise
            logger.warning(f"{name} is not measured: {error}")
            del decoders[name]
    return decoders


def _step_seconds(answer: TimedBatch) -> float:
    """Of plain decoding: every token but the first is a step."""
    return (answer.wall_seconds - (answer.first_token_seconds or 0.0)) / (len(answer.new_tokens[0]) - 1)


def _host_waits_per_cycle(answer: Callable[[int], TimedBatch], new_tokens: int, device: torch.device) -> float | None:
    """Counted by CUDA itself, over the cycles by which a longer answer exceeds a shorter one; None elsewhere."""
    if device.type != "cuda":
        return None
    waits, cycles = [], []
    for num_tokens in (new_tokens // 2, new_tokens):
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                found = answer(num_tokens)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
        cycles.append(sum(map(len, found.acceptance_lengths or [])))
    return (waits[1] - waits[0]) / (cycles[1] - cycles[0]) if cycles[1] > cycles[0] else None


# ---------------------------------------------------------------------- table

COLUMNS = (
    *("prompt", "cycle", "plain ms", "compiled ms", "cycle ms", "draft ms", "verify ms", "host ms"),
    *("cost, eager", "cost, compiled", "paper", "waits a cycle", "memory plain", "memory draft"),
)


def as_markdown(results: SyntheticResults) -> str:
    """The table, with the paper's implied cycle cost beside ours."""
    tree = "/".join(str(value) for value in results.tree.values())
    paper = "-" if results.paper_cycle_cost is None else f"{results.paper_cycle_cost:.2f}"
    vocabulary = "" if results.draft_vocab_size is None else f", {results.draft_vocab_size:,} draft tokens"
    head = "" if results.draft_head_dtype is None else f", draft head in {results.draft_head_dtype}"
    lines = [
        f"# {results.shape}, random weights, {results.dtype}, tree {tree} (tokens/levels/width){vocabulary}{head}",
        "",
        f"Target {results.target_parameters / 1e9:.2f} B parameters, draft {results.draft_parameters / 1e9:.3f} B, "
        f"{results.provenance.get('device', 'device not recorded')}. Cycle cost: one cycle over one plain step. "
        f"Paper (A100, its own code, eager): {paper}.",
        "",
        *_floor(results.weight_reads),
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in results.rows:
        cells = [
            str(row.prompt_length),
            "compiled" if row.is_compiled else "eager",
            *map(_milliseconds, (row.plain_step_seconds, row.compiled_step_seconds, row.cycle_seconds)),
            *map(_milliseconds, (row.draft_seconds, row.verify_seconds, row.host_seconds)),
            f"{row.cycle_cost:.2f}",
            _or_dash(row.compiled_cycle_cost, "{:.2f}"),
            paper,
            _or_dash(row.host_waits_per_cycle, "{:.2f}"),
            *(_or_dash(n and n / 2**30, "{:.2f} GiB") for n in (row.plain_memory_bytes, row.draft_memory_bytes)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {length} | {why} |" + " |" * (len(COLUMNS) - 2) for length, why in results.skipped.items()]
    return "\n".join(lines) + "\n"


def _floor(reads: WeightReads | None) -> list[str]:
    if reads is None:
        return []
    step, one_pass, head = (
        f"{size / 1e9:.2f} GB" for size in (reads.step_bytes, reads.draft_pass_bytes, reads.draft_head_bytes)
    )
    return [
        f"Computed, not measured: a plain step reads {step} of weights, a draft pass {one_pass} ({head} of them the "
        f"LM head's), a cycle {reads.cycle_bytes / 1e9:.2f} GB. If weights alone took time, a cycle would cost "
        f"{reads.cycle_cost:.2f} steps.",
        "",
    ]


def _milliseconds(seconds: float | None) -> str:
    return _or_dash(seconds and 1000 * seconds, "{:.2f}")


def _or_dash(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


__all__ = [
    "PROMPT_LENGTHS",
    "SyntheticResults",
    "SyntheticRow",
    "as_markdown",
    "measure_synthetic",
]
