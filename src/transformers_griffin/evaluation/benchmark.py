"""
A whole benchmark: what is missing is measured, all is summed up, and what was measured survives an interrupt.

    results = tg.benchmark(target, tokenizer, {"griffin": draft}, output_dir="runs/bench")

How things are measured: `runner.py`. What comes of it: `results.py`.

Next: `report.py`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_griffin import GriffinDraftModel
from .measurement_log import FILE_NAME, MeasurementLog
from .methods import BUILT_IN, Decoder, make_decoders
from .plan import Plan, make_settings
from .prompts import PACKAGED, Prompt, load_prompts
from .provenance import provenance, publishable
from .results import BenchmarkResults
from .runner import Runner, num_answers
from .summary import summarize


NOT_RUN = "not_run"  # in `BenchmarkResults.extra`: setting -> method -> reason
Loader = Callable[[str], tuple[PreTrainedModel, list[Decoder]]]  # dtype -> target and methods


def benchmark(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafts: Mapping[str, GriffinDraftModel] | None = None,
    *,
    assistant: PreTrainedModel | None = None,
    methods: Iterable[str] = BUILT_IN,
    compiles_drafts: bool = False,
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
        compiles_drafts (`bool`, defaults to `False`):
            Whether every draft is measured a second time, as `NAME_compiled`, with a compiled cycle.
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
    decoders = make_decoders(target, methods, assistant, drafts, compiles_drafts)
    return run_benchmark(lambda _: (target, decoders), tokenizer, plan, output_dir, title, target.name_or_path or "")


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
        with tqdm(total=num_answers(plan, decoders), initial=len(log), unit="answer", smoothing=0.05) as progress:
            for setting in plan.settings:
                if setting.dtype != dtype:
                    dtype = setting.dtype
                    target, decoders = load(dtype)
                runner = Runner(target, tokenizer, decoders, plan, setting, log, progress)
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
        if (folder / FILE_NAME).exists():
            raise ValueError(f"{folder} holds {FILE_NAME}, but no results.json to say of what. Give another folder.")
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


__all__ = ["NOT_RUN", "benchmark", "run_benchmark"]
