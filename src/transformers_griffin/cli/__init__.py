"""
The `griffin` command: one subcommand per job, each a thin layer over a public function.

Exit status: 0 done, 1 the job failed (one line on stderr, the traceback with `--debug`), 2 wrong usage.

A new subcommand is a module with `add_to(subparsers)`, which adds its parser and names its `run`; list it in
`SUBCOMMANDS`. Heavy modules are imported when a subcommand runs, so that `--help` is quick.
"""

import argparse
import sys
from collections.abc import Sequence

from . import bench, convert, demo, export, generate, plan, prepare, profile, push, report, train, truncate, tune


SUBCOMMANDS = (bench, convert, demo, export, generate, plan, prepare, profile, push, report, train, truncate, tune)
EXAMPLES = """\
examples:
  griffin bench --target user/target --draft my-draft --output runs/bench
  griffin convert user/griffin-release my-draft --target user/target
  griffin convert my-draft released --target user/target --to released
  griffin demo
  griffin export my-draft served --target user/target
  griffin generate --target user/target --draft my-draft --prompt "Why is the sky blue?"
  griffin plan --target user/target
  griffin prepare --target user/target --data chats.jsonl --output features
  griffin profile --target user/target --draft my-draft
  griffin push my-draft user/my-draft --target user/target --results results.json
  griffin report runs/before runs/after
  griffin train recipe.yaml --features features
  griffin truncate my-draft my-draft-32k --target user/target --data chats.jsonl --size 32768
  griffin tune --target user/target --draft my-draft --save
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the `griffin` command.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program name; those of the process by default.

    Returns:
        `int`: the exit status. Wrong usage leaves with `SystemExit(2)`, `--help` and `--version` with `SystemExit(0)`.
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"griffin {args.command}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="griffin",
        description="GRIFFIN speculative decoding: train drafts, measure, convert, use and publish them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"transformers-griffin {__version__}")
    subparsers = parser.add_subparsers(title="subcommands", dest="command", metavar="COMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(subparsers)
    return parser
