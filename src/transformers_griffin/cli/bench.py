"""`griffin bench`: what drafts are worth on a target, prompts and machine."""

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import synthetic
from .shared import (
    DTYPES,
    add_parser,
    default_device,
    load_draft,
    load_target,
    non_negative_float,
    positive_int,
    quiet_transformers,
)


EXAMPLES = """\
All methods answer each prompt before the next one comes, in rotating order, so that a drift of the machine's speed
hits all alike. Every measurement is kept at once: the same command goes on where an interrupted one ended. The last
line of stdout is one JSON object, that of OUTPUT/results.json; tables and pictures: OUTPUT/report.html.

examples:
  griffin bench --target user/target --draft my-draft --output runs/bench
  griffin bench --target user/target --draft griffin=draft-a hass=draft-b@10/5/2 --assistant user/small \\
    --temperature 0 1
  griffin bench --target user/target --draft my-draft --prompts mt_bench my.jsonl openai/gsm8k:main:test \\
    --max-prompts 40 --max-new-tokens 256 --dtype bfloat16 --repeats 3
  griffin bench --synthetic llama-3-8b --output runs/llama-3-8b
"""


def add_to(subparsers: Any) -> None:
    """`griffin bench`"""
    from ..evaluation.methods import BUILT_IN
    from ..evaluation.prompts import PACKAGED

    parser = add_parser(subparsers, "bench", "measure drafts beside other ways to decode, on your prompts", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", help="required, except with --synthetic")
    parser.add_argument(
        "--draft",
        metavar="[NAME=]DIR_OR_REPO[@TREE]",
        nargs="+",
        type=DraftArgument.parse,
        default=[],
        help="drafts for the target, named for the table; TREE is tokens/depth/width, or "
        "tokens/depth/width/level cost for a depth that adapts; the draft's own by default",
    )
    parser.add_argument(
        "--compile-drafts",
        action="store_true",
        help="measure every draft a second time, as NAME_compiled: static cache and compiled cycle, which takes a "
        "minute or more to compile",
    )
    parser.add_argument("--assistant", metavar="DIR_OR_REPO", help="a small independent model: speculative sampling")
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=BUILT_IN,
        default=BUILT_IN,
        help="beside drafts and assistant; plain always runs (default: all)",
    )
    parser.add_argument(
        "--prompts",
        metavar="SOURCE",
        nargs="+",
        default=PACKAGED,
        help="mt_bench, humaneval, gsm8k (all by default), JSONL files, Hub datasets as NAME[:CONFIG[:SPLIT]]",
    )
    parser.add_argument("--max-prompts", metavar="N", type=positive_int, help="the first N of each source")
    parser.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=128, help="default: %(default)s")
    parser.add_argument(
        "--temperature", nargs="+", type=non_negative_float, default=[0.0], help="0 decodes greedily (default: 0)"
    )
    parser.add_argument("--top-p", type=non_negative_float, help="nucleus sampling, for temperatures above 0")
    parser.add_argument("--top-k", type=positive_int, help="top-k sampling, likewise")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["auto"], help="default: that of the target")
    parser.add_argument("--batch-size", metavar="N", nargs="+", type=positive_int, default=[1], help="default: 1")
    parser.add_argument(
        "--repeats", metavar="N", type=positive_int, default=1, help="of every answer; the median time counts"
    )
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument(
        "--allow-differences", action="store_true", help="report SR although greedy float32 answers differ"
    )
    parser.add_argument("--title", default="Benchmark", help="of tables and pages")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/bench"), help="default: %(default)s")
    synthetic.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures, writes the report, prints its tables and the results file."""
    from transformers import AutoConfig, AutoTokenizer

    from ..evaluation.benchmark import run_benchmark
    from ..evaluation.plan import Plan, make_settings
    from ..evaluation.prompts import load_prompts
    from ..evaluation.report import markdown_tables, write_report

    quiet_transformers()
    if args.synthetic:
        return synthetic.run(args)
    synthetic.refuse_options(args)
    if args.target is None:
        raise ValueError("Give --target (and drafts for it with --draft), or --synthetic with a shape.")
    names = [draft.name for draft in args.draft]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Two drafts are called {twice[0]!r}. Give each its own name, as in griffin=my-draft.")
    prompts = load_prompts(args.prompts, args.max_prompts)
    own_dtype = str(AutoConfig.from_pretrained(args.target).dtype or "float32").removeprefix("torch.")
    dtypes = list(dict.fromkeys(own_dtype if dtype == "auto" else dtype for dtype in args.dtype))
    results = run_benchmark(
        load=lambda dtype: load_all(args, dtype),
        tokenizer=AutoTokenizer.from_pretrained(args.target),
        plan=Plan(
            prompts=prompts,
            settings=make_settings(dtypes, args.temperature, args.top_p, args.top_k, args.batch_size),
            max_new_tokens=args.max_new_tokens,
            repeats=args.repeats,
            allow_differences=args.allow_differences,
        ),
        output_dir=args.output,
        title=args.title,
        target_name=args.target,
        arguments={
            name: list(map(str, value)) if name == "draft" else value
            for name, value in vars(args).items()
            if name not in ("run", "command", "debug")
        },
    )
    write_report(results, args.output)
    print(markdown_tables(results))
    print(json.dumps(results.as_dict()))


@dataclass(frozen=True)
class DraftArgument:
    """A draft as named on the command line."""

    name: str
    path: str
    tree: tuple[float, ...] | None  # nodes, depth, width, cost of a level

    @classmethod
    def parse(cls, text: str) -> "DraftArgument":
        """Reads `griffin=path@10/5/2` or `path@10/5/2/0.1`; without a name it is the last part of the path."""
        named, at, end = text.rpartition("@")
        is_tree = bool(at) and re.fullmatch(r"\d+/\d+/\d+(/[\d.]+)?", end) is not None
        name, equals, path = (named if is_tree else text).partition("=")
        name, path = (name, path) if equals else (Path(name).name, name)
        if not name or not path:
            raise argparse.ArgumentTypeError(f"{text!r} has no name or no path; give them as in griffin=my-draft")
        numbers = [float(text) if "." in text else int(text) for text in end.split("/")] if is_tree else None
        return cls(name, path, None if numbers is None else tuple(numbers))

    def __str__(self) -> str:
        from ..evaluation.provenance import publishable

        tree = "" if self.tree is None else "@" + "/".join(map(str, self.tree))
        return f"{self.name}={publishable(self.path)}{tree}"


def load_all(args: argparse.Namespace, dtype: str) -> tuple[Any, list[Any]]:
    """The target and its methods in a dtype."""
    from ..decoding.draft_head import head_dtype
    from ..evaluation.methods import make_decoders
    from ..evaluation.tree_acceptance import TreeSettings

    device = args.device or default_device()
    target = load_target(args.target, dtype, device)
    assistant = load_target(args.assistant, dtype, device) if args.assistant else None
    drafts = {}
    for given in args.draft:
        draft = load_draft(given.path, target, dtype=target.dtype)
        draft.to(device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
        if given.tree is not None:
            tree = TreeSettings(*given.tree)  # type: ignore[arg-type]  # checked later
            replace(tree, draft_head_dtype=head_dtype(draft.generation_config)).write_to(draft.generation_config)
        drafts[given.name] = draft
    return target, make_decoders(target, args.methods, assistant, drafts, args.compile_drafts)
