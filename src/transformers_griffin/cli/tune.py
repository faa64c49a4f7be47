"""`griffin tune`: the draft tree that is fastest on this machine."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from .shared import (
    DTYPES,
    add_parser,
    add_sampling,
    default_device,
    load_draft,
    load_target,
    positive_int,
    quiet_transformers,
    sampling,
)


if TYPE_CHECKING:
    from ..evaluation.tuning import TuningResult


EXAMPLES = """\
Measures what verifying and drafting cost here, computes what every tree would accept, and runs the best few. With
--save the winner is written to DRAFT/generation_config.json; weights are never touched. Says so if plain decoding is
faster than any tree. The last line of stdout is one JSON object.

examples:
  griffin tune --target user/target --draft my-draft --save
  griffin tune --target user/target --draft my-draft --prompts my.jsonl --max-prompts 12 --dtype bfloat16
  griffin tune --target user/target --draft my-draft --num-tokens 8 16 32 --depths 3 5 7 --widths 2 4
"""


def add_to(subparsers: Any) -> None:
    """`griffin tune`"""
    parser = add_parser(subparsers, "tune", "find the fastest draft tree for target, draft and machine", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--draft", metavar="DIR_OR_REPO", required=True)
    parser.add_argument(
        "--prompts",
        metavar="SOURCE",
        nargs="+",
        help="like those to come: mt_bench, humaneval, gsm8k (all by default), JSONL files, Hub datasets",
    )
    parser.add_argument(
        "--max-prompts", metavar="N", type=positive_int, help="the first N of each source (default: 4 batches)"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=128, help="default: %(default)s")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=1, help="default: %(default)s")
    add_sampling(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="tune the compiled cycle (static cache); every tree that is run takes a minute or more to compile",
    )
    parser.add_argument("--save", action="store_true", help="write the winner into the draft's directory")
    grid = parser.add_argument_group("trees to choose from (default: from one token to beyond the paper's tree)")
    for option, help in (
        ("--num-tokens", "drafted tokens verified per cycle"),
        ("--depths", "levels of the tree"),
        ("--widths", "tokens kept per level"),
    ):
        grid.add_argument(option, metavar="N", nargs="+", type=positive_int, help=help)
    grid.add_argument(
        "--finalists", metavar="N", type=positive_int, default=3, help="trees that are run for real (default: 3)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Finds the tree, says whether it is worth having, and keeps it with --save."""
    from transformers import AutoTokenizer

    from ..evaluation.prompts import PACKAGED, first_question_batches, load_prompts
    from ..evaluation.provenance import provenance
    from ..evaluation.tree_costs import TreeGrid
    from ..evaluation.tuning import tune_tree

    quiet_transformers()
    if args.save:
        check_can_save(args.draft)
    prompts = load_prompts(args.prompts or PACKAGED, args.max_prompts or 4 * args.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = load_target(args.target, args.dtype, args.device or default_device())
    draft: Any = load_draft(args.draft, target, dtype=target.dtype)
    draft.to(target.device)
    pad_token_id = tokenizer.pad_token_id or 0
    given = {"num_tokens": args.num_tokens, "depths": args.depths, "widths": args.widths}
    result = tune_tree(
        target,
        draft,
        first_question_batches(tokenizer, prompts, args.batch_size, pad_token_id, target.device),
        grid=TreeGrid(**{name: values for name, values in given.items() if values}),
        max_new_tokens=args.max_new_tokens,
        num_finalists=args.finalists,
        compiles=args.compile,
        pad_token_id=pad_token_id,
        **sampling(args),
    )
    print(describe(result))
    if args.save:
        draft.generation_config.save_pretrained(args.draft)
        print(f"Wrote {os.path.join(args.draft, 'generation_config.json')}")
    arguments = {name: value for name, value in vars(args).items() if name not in ("run", "command", "debug")}
    about = {"dtype": str(target.dtype).removeprefix("torch."), "saved": args.save}
    print(json.dumps(result.as_dict() | about | {"provenance": provenance(arguments, target.device)}))


def check_can_save(path: str) -> None:
    """Refuses, before anything is measured, drafts whose directory cannot take tree settings."""
    from transformers import PreTrainedConfig

    from ..configuration_griffin import GriffinDraftConfig

    if not os.path.isdir(path):
        raise ValueError(f"--save writes into the draft's directory, but {path} is none. Download the draft first.")
    config, _ = PreTrainedConfig.get_config_dict(path)
    if config.get("model_type") != GriffinDraftConfig.model_type:
        raise ValueError(
            f"{path} is a released checkpoint, which has no place for tree settings. Convert it first: "
            f"griffin convert {path} OUT"
        )


def describe(result: "TuningResult") -> str:
    """The trees that were run, what they cost, and what to do."""
    lines = [f"{'tree':<50} {'tau':>5} {'expected':>9} {'measured tokens/s':>18}"]
    for candidate in result.confirmed:
        tau = "-" if candidate.tau is None else f"{candidate.tau:.2f}"
        speed = candidate.expected_tokens_per_second
        expected = "-" if speed is None else f"{speed:.1f}"
        lines.append(f"{candidate.tree!s:<50} {tau:>5} {expected:>9} {candidate.tokens_per_second:>18.1f}")
    plain = {"plain decoding": result.plain_tokens_per_second}
    if result.plain_compiled_tokens_per_second is not None:
        plain["plain decoding, compiled"] = result.plain_compiled_tokens_per_second
    lines += [f"{name:<50} {'':>5} {'':>9} {speed:>18.1f}" for name, speed in plain.items()]
    costs = [f"{1000 * seconds:.1f} ms for {n} tokens" for n, seconds in result.curves.verify.items()]
    lines += ["", f"Verification: {', '.join(costs)}. {result.num_trees} trees compared."]
    speedup = f"{result.speedup_ratio:.2f}"
    if result.speedup_interval is not None:
        low, high = result.speedup_interval
        speedup += f" [{low:.2f}, {high:.2f}]"
    lines.append(f"Best tree: {result.best.tree}; {speedup} times plain decoding without compilation.")
    if not result.is_recommended:
        lines.append("Plain decoding is faster. Do not use this draft here.")
    return "\n".join(lines)
