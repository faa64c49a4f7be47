"""
Runs every method on the same prompts, interleaved, and keeps each measurement at once.

All methods answer a prompt before the next prompt comes, in an order that rotates, so that a drift of the machine's
speed, or what one method leaves in its caches, hits all alike. Repeats repeat the same work, sampling included (the
seed depends on the prompt alone), so that medians over them mean something.

A chat of several turns goes on from what *this* method answered. Greedy answers of lossless methods are identical, so
their second questions are, too; sampled answers differ, and so do the prompts of later turns.

Next: `summary.py`.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..modeling_griffin import GriffinDraftModel
from .answers import TimedBatch, answer_batch, end_tokens
from .measurement_log import MeasurementLog
from .methods import BUILT_IN, PLAIN_COMPILED, Decoder, make_decoders
from .prompts import PACKAGED, Prompt, encode_chat, load_prompts, pad_left
from .provenance import provenance, publishable
from .results import BenchmarkResults, Measurement, Setting
from .summary import summarize


logger = logging.get_logger(__name__)

WARMUP_TOKENS = 16
TURN_SLACK = 32  # tokens that a chat template puts around a message, at most
NOT_RUN = "not_run"  # in `BenchmarkResults.extra`: setting -> method -> reason
Loader = Callable[[str], tuple[PreTrainedModel, list[Decoder]]]  # dtype -> target and methods


@dataclass(frozen=True)
class Plan:
    """What is measured; a run that goes on must have the same."""

    prompts: list[Prompt]
    settings: list[Setting]
    max_new_tokens: int = 128
    repeats: int = 1
    allow_differences: bool = False  # report SR although greedy answers differ

    def batches(self, batch_size: int) -> Iterator[list[Prompt]]:
        """Prompts of one domain and one number of turns, in order."""
        for _, group in groupby(self.prompts, key=lambda prompt: (prompt.domain, len(prompt.turns))):
            prompts = list(group)
            for start in range(0, len(prompts), batch_size):
                yield prompts[start : start + batch_size]

    def fingerprint(self) -> dict[str, Any]:
        """Tells whether two plans measure the same."""
        prompts = repr(self.prompts).encode()
        return {
            "prompts": f"{len(self.prompts)} with checksum {zlib.crc32(prompts):08x}",
            "max_new_tokens": self.max_new_tokens,
            "repeats": self.repeats,
            "settings": [asdict(setting) for setting in self.settings],
        }


def benchmark(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafts: Mapping[str, GriffinDraftModel] | None = None,
    *,
    assistant: PreTrainedModel | None = None,
    methods: Iterable[str] = BUILT_IN,
    prompts: Iterable[str | Path] | Sequence[Prompt] = PACKAGED,
    max_prompts: int | None = None,
    max_new_tokens: int = 128,
    temperatures: Iterable[float] = (0.0,),
    top_p: float | None = None,
    top_k: int | None = None,
    batch_sizes: Iterable[int] = (1,),
    repeats: int = 1,
    allow_differences: bool = False,
    output_dir: str | Path | None = None,
    title: str = "Benchmark",
) -> BenchmarkResults:
    """
    Measures what drafts are worth on this target, these prompts and this machine, against other ways to decode.

    Args:
        target ([`~transformers.PreTrainedModel`]): the target, in the dtype and on the device to measure.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's.
        drafts (`Mapping[str, GriffinDraftModel]`, *optional*): by the names that tables shall show.
        assistant ([`~transformers.PreTrainedModel`], *optional*):
            A small independent model with the target's tokenizer, for transformers' own assisted generation ("sps").
        methods (`Iterable[str]`): of "plain", "plain_compiled", "prompt_lookup"; all by default. "plain" always runs.
        prompts (`Iterable[str | Path]` or `Sequence[Prompt]`): see [`load_prompts`]; the packaged ones by default.
        max_prompts (`int`, *optional*): the first ones of each source.
        max_new_tokens (`int`, defaults to 128): of an answer.
        temperatures (`Iterable[float]`, defaults to `(0.0,)`): a setting each; 0 decodes greedily.
        top_p, top_k (*optional*): for the settings that sample; not cut by default, as in the paper.
        batch_sizes (`Iterable[int]`, defaults to `(1,)`): a setting each.
        repeats (`int`, defaults to 1): measurements of the same answer, of which the median time counts.
        allow_differences (`bool`, defaults to `False`):
            Report speed-ups although a method's greedy float32 answers differ from plain decoding's.
        output_dir (`str` or `Path`, *optional*):
            Folder for `measurements.jsonl` and `results.json`. With the same arguments a run that was interrupted goes
            on; without it nothing is written.
        title (`str`): of tables and pages.

    Returns:
        [`BenchmarkResults`]

    Raises:
        ValueError: if a prompt, method, draft or assistant is unfit, or `output_dir` holds a run of something else.

    Example:

    ```python
    results = tg.benchmark(target, tokenizer, {"griffin": draft}, max_prompts=2, methods=[])
    ```
    """
    given = list(prompts)
    chats = [prompt for prompt in given if isinstance(prompt, Prompt)][:max_prompts]
    chats += load_prompts([source for source in given if not isinstance(source, Prompt)], max_prompts)
    dtype = str(target.dtype).removeprefix("torch.")
    plan = Plan(
        prompts=chats,
        settings=make_settings([dtype], temperatures, top_p, top_k, batch_sizes),
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        allow_differences=allow_differences,
    )
    decoders = make_decoders(target, methods, assistant, drafts)
    return run_benchmark(lambda _: (target, decoders), tokenizer, plan, output_dir, title, target.name_or_path)


def make_settings(
    dtypes: Iterable[str],
    temperatures: Iterable[float],
    top_p: float | None = None,
    top_k: int | None = None,
    batch_sizes: Iterable[int] = (1,),
) -> list[Setting]:
    """Every combination; all settings of a dtype follow each other, as the target is loaded for each."""
    cut = {"top_p": top_p, "top_k": top_k}
    cut_name = "".join(f" {name}={value:g}" for name, value in cut.items() if value is not None)
    uncut = {"top_p": 1.0, "top_k": 0}  # said aloud: generation configurations cut by default
    settings = []
    for dtype in dtypes:
        for temperature in temperatures:
            sampling = {"do_sample": True, "temperature": temperature} | uncut
            sampling |= {name: value for name, value in cut.items() if value is not None}
            for batch_size in batch_sizes:
                name = f"{dtype} T={temperature:g}" + (cut_name if temperature else "")
                settings.append(
                    Setting(
                        name=name + (f" batch {batch_size}" if batch_size > 1 else ""),
                        dtype=dtype,
                        generate_kwargs=sampling if temperature else {"do_sample": False},
                        batch_size=batch_size,
                    )
                )
    return settings


def run_benchmark(
    load: Loader,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    output_dir: str | Path | None = None,
    title: str = "Benchmark",
    target_name: str = "",
    arguments: Mapping[str, Any] | None = None,
) -> BenchmarkResults:
    """
    Measures what is missing, and sums up.

    Args:
        load (`Callable`): gives the target and its methods in a dtype.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's.
        plan ([`Plan`]): what to measure.
        output_dir, title: see [`benchmark`].
        target_name (`str`): its path or repository.
        arguments (`Mapping[str, Any]`, *optional*): of the caller, kept with the results.

    Raises:
        ValueError: if `output_dir` holds a run of something else.

    Effects: an interrupt or an error leaves what was measured in `output_dir`, marked as incomplete.
    """
    folder = None if output_dir is None else Path(output_dir)
    dtype = plan.settings[0].dtype
    target, decoders = load(dtype)
    results = BenchmarkResults(
        title=title,
        target=publishable(target_name),
        methods=[decoder.method for decoder in decoders],
        settings=plan.settings,
        summaries=[],
        provenance=provenance(arguments or {}, target.device),
        is_complete=False,
        extra={"plan": plan.fingerprint()},
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _check_same_run(folder, results)
    log = MeasurementLog(folder)
    not_run: dict[str, dict[str, str]] = {}
    is_complete = False
    try:
        with tqdm(total=_num_answers(plan, decoders), initial=len(log), unit="answer", smoothing=0.05) as progress:
            for setting in plan.settings:
                if setting.dtype != dtype:
                    dtype = setting.dtype
                    target, decoders = load(dtype)
                runner = _Runner(target, tokenizer, decoders, plan, setting, log, progress)
                not_run[setting.name] = runner.not_run
                runner.run()
        is_complete = True
    finally:
        results = replace(
            results,
            summaries=summarize(list(log), results.methods, plan.settings, plan.allow_differences, not_run),
            is_complete=is_complete,
            extra=results.extra | {NOT_RUN: not_run},
        )
        if folder is not None:
            results.save(folder / "results.json")
    return results


def _check_same_run(folder: Path, results: BenchmarkResults) -> None:
    """Refuses to mix measurements of two runs; a new folder gets the file that says what it is for."""
    path = folder / "results.json"
    if not path.exists():
        results.save(path)
        return
    found, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(results.as_dict()))
    compared = {name: (found.get(name), wanted[name]) for name in ("target", "methods")}
    compared |= {
        name: (found.get("extra", {}).get("plan", {}).get(name), value)
        for name, value in wanted["extra"]["plan"].items()
    }
    for name, (old, new) in compared.items():
        if old != new:
            raise ValueError(
                f"{folder} holds measurements with other {name}: {old}, not {new}. Give another folder, or the "
                "arguments of the run that is to go on."
            )


def _num_answers(plan: Plan, decoders: list[Decoder]) -> int:
    """Measurements of the whole run."""
    return sum(
        len(batch[0].turns) * plan.repeats * sum(_fits(decoder, setting) for decoder in decoders)
        for setting in plan.settings
        for batch in plan.batches(setting.batch_size)
    )


def _fits(decoder: Decoder, setting: Setting) -> bool:
    return decoder.max_batch_size is None or setting.batch_size <= decoder.max_batch_size


class _Runner:
    """Measures one setting."""

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoders: list[Decoder],
        plan: Plan,
        setting: Setting,
        log: MeasurementLog,
        progress: Any,
    ):
        self.target, self.tokenizer, self.plan, self.setting = target, tokenizer, plan, setting
        self.log, self.progress = log, progress
        self.decoders = [decoder for decoder in decoders if _fits(decoder, setting)]
        self.not_run = {  # method -> reason
            decoder.method.name: f"takes batches of {decoder.max_batch_size} only"
            for decoder in decoders
            if not _fits(decoder, setting)
        }
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = min(end_tokens(target), default=0) if pad is None else pad

    def run(self) -> None:
        """Warms up, then measures what the log does not hold."""
        batches = list(self.plan.batches(self.setting.batch_size))
        if all(key in self.log.by_key for batch in batches for key in self._keys(batch)):
            return
        self.max_length = self._longest_sequence()
        self._warm_up(batches[0])
        for index, batch in enumerate(batches):
            self.progress.set_description(f"{self.setting.name}, {batch[0].domain}")
            for repeat in range(self.plan.repeats):
                self._answer_chats(batch, repeat, rotation=index * self.plan.repeats + repeat)

    def _keys(self, batch: list[Prompt]) -> Iterator[tuple]:
        for turn, repeat in product(range(len(batch[0].turns)), range(self.plan.repeats)):
            for decoder in self.decoders:
                yield self._key(decoder, batch, turn, repeat)

    def _key(self, decoder: Decoder, batch: list[Prompt], turn: int, repeat: int) -> tuple:
        name = "+".join(prompt.id for prompt in batch)
        return self.setting.name, decoder.method.name, batch[0].domain, name, turn, repeat

    def _longest_sequence(self) -> int:
        """No chat grows longer than this many tokens."""
        return max(
            sum(len(encode_chat(self.tokenizer, [t])) + TURN_SLACK + self.plan.max_new_tokens for t in prompt.turns)
            for prompt in self.plan.prompts
        )

    def _warm_up(self, batch: list[Prompt]) -> None:
        """Lets every method load, allocate and compile; one whose compilation fails is left out."""
        rows = [encode_chat(self.tokenizer, prompt.turns[:1]) for prompt in batch]
        for decoder in list(self.decoders):
            self.progress.set_description(f"{self.setting.name}, warm-up of {decoder.method.name}")
            try:
                for _ in range(decoder.num_warmups):
                    self._answer(decoder, rows, min(WARMUP_TOKENS, self.plan.max_new_tokens))
            except Exception as error:
                if decoder.method.kind != PLAIN_COMPILED:
                    raise
                reason = f"does not compile here ({type(error).__name__})"
                logger.warning(f"{decoder.method.name} {reason} and is left out: {error}")
                self.not_run[decoder.method.name] = reason
                self.decoders.remove(decoder)

    def _answer_chats(self, batch: list[Prompt], repeat: int, rotation: int) -> None:
        """Every method answers all turns, each going on from its own answers."""
        answers: dict[str, list[list[str]]] = {d.method.name: [[] for _ in batch] for d in self.decoders}
        for turn in range(len(batch[0].turns)):
            first = (rotation + turn) % len(self.decoders)
            for decoder in self.decoders[first:] + self.decoders[:first]:
                said = answers[decoder.method.name]
                key = self._key(decoder, batch, turn, repeat)
                if key not in self.log.by_key:
                    rows = [
                        encode_chat(self.tokenizer, prompt.turns[: turn + 1], row)
                        for prompt, row in zip(batch, said, strict=True)
                    ]
                    self.log.append(self._measure(decoder, key, rows))
                    self.progress.update()
                texts = self.tokenizer.batch_decode(self.log.by_key[key].new_tokens, skip_special_tokens=True)
                for row, text in zip(said, texts, strict=True):
                    row.append(text)

    def _measure(self, decoder: Decoder, key: tuple, rows: list[list[int]]) -> Measurement:
        setting, method, domain, prompt, turn, repeat = key
        torch.manual_seed(zlib.crc32(f"{domain}/{prompt}/{turn}".encode()))
        return Measurement(
            setting=setting,
            method=method,
            domain=domain,
            prompt=prompt,
            turn=turn,
            repeat=repeat,
            num_prompt_tokens=max(map(len, rows)),
            **vars(self._answer(decoder, rows, self.plan.max_new_tokens)),
        )

    def _answer(self, decoder: Decoder, rows: list[list[int]], max_new_tokens: int) -> TimedBatch:
        input_ids, attention_mask = pad_left(rows, self.pad_token_id)
        return answer_batch(
            self.target,
            input_ids.to(self.target.device),
            attention_mask.to(self.target.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_token_id,
            **self.setting.generate_kwargs,
            **decoder.generate_kwargs(len(rows), self.max_length),
        )


__all__ = ["NOT_RUN", "Plan", "benchmark", "make_settings", "run_benchmark"]
