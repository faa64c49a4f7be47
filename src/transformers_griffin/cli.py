"""
The `griffin` command: one subcommand per job, each a thin layer over a public function.

Exit status: 0 done, 1 the job failed (one line on stderr, the traceback with `--debug`), 2 wrong usage.

A new subcommand is a function that adds its parser and names its `run`, listed in `SUBCOMMANDS`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .modeling_griffin import GriffinDraftModel

EXAMPLES = """\
examples:
  griffin convert user/griffin-release my-draft --target user/target
  griffin convert my-draft released --target user/target --to released
  griffin generate --target user/target --draft my-draft --prompt "Why is the sky blue?"
"""
CONVERT_EXAMPLES = """\
A released checkpoint is a directory or Hub repository with config.json and pytorch_model.bin or model.safetensors, in
the layout of GRIFFIN, EAGLE, EAGLE-2 or HASS. With --target its copy of the embedding is compared with the target's.

examples:
  griffin convert user/griffin-release my-draft
  griffin convert user/griffin-release my-draft --target user/target
  griffin convert my-draft released --target user/target --to released
"""
GENERATE_EXAMPLES = """\
The draft may be a released checkpoint too. The tokenizer's chat template is used if it has one.

examples:
  griffin generate --target user/target --draft my-draft --prompt "Why is the sky blue?"
  griffin generate --target user/target --draft my-draft --prompt "def add(" --raw --temperature 0.8 --top-p 0.9
  cat question.txt | griffin generate --target user/target --draft my-draft --prompt -
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
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="griffin",
        description="GRIFFIN speculative decoding: convert drafts and generate with them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"transformers-griffin {__version__}")
    subparsers = parser.add_subparsers(title="subcommands", dest="command", metavar="COMMAND", required=True)
    for add_subcommand in SUBCOMMANDS:
        add_subcommand(subparsers)
    return parser


def add_parser(subparsers: Any, name: str, help: str, epilog: str) -> argparse.ArgumentParser:
    """A subcommand's parser, with what all of them have."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


# ---------------------------------------------------------------------- convert


def add_convert(subparsers: Any) -> None:
    """`griffin convert`"""
    parser = add_parser(subparsers, "convert", "convert a released checkpoint to a draft, or back", CONVERT_EXAMPLES)
    parser.add_argument("path", metavar="PATH", help="directory or Hub repository to read")
    parser.add_argument("out", metavar="OUT", help="directory to write")
    parser.add_argument("--target", metavar="DIR_OR_REPO", help="the target that the draft was trained for")
    parser.add_argument(
        "--to", choices=["griffin", "released"], default="griffin", help="format to write (default: %(default)s)"
    )
    parser.add_argument(
        "--config-only",
        action="store_true",
        help="compare with the target's config.json only, without loading its weights",
    )
    parser.add_argument("--safetensors", action="store_true", help="with --to released: write model.safetensors")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of PATH on the Hub")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> None:
    """Reads PATH in either format and writes OUT in the other."""
    from transformers import AutoConfig

    from .conversion import convert_checkpoint, write_released_checkpoint

    quiet_transformers()
    if os.path.isfile(args.out):
        raise ValueError(f"{args.out} is a file. Give a directory to write to.")
    if os.path.realpath(args.path) == os.path.realpath(args.out):
        raise ValueError(f"PATH and OUT are both {args.out}. Write to another directory.")
    hub_kwargs = {"revision": args.revision} if args.revision else {}
    if args.to == "released":
        if args.target is None:
            raise ValueError("The released format stores the target's embedding. Give --target.")
        target = load_target(args.target)
        draft = load_draft(args.path, target, **hub_kwargs)
        write_released_checkpoint(draft, args.out, safe_serialization=args.safetensors)
    else:
        config = AutoConfig.from_pretrained(args.target) if args.target else None
        checked_target = load_target(args.target) if args.target and not args.config_only else None
        draft = convert_checkpoint(args.path, target_config=config, target=checked_target, **hub_kwargs)
        draft.save_pretrained(args.out)
    print(f"Wrote {args.out}: {describe_draft(draft)}")


def describe_draft(draft: "GriffinDraftModel") -> str:
    """One line: architecture, sizes, dtype."""
    config = draft.config
    heads = "two outputs" if config.dual_head else "one output"
    return (
        f"{config.fusion} fusion, {heads}, {config.num_hidden_layers} layer(s), hidden size {config.hidden_size}, "
        f"vocabulary {config.vocab_size}, {draft.num_parameters():,} parameters, "
        f"{str(draft.dtype).removeprefix('torch.')}"
    )


# ---------------------------------------------------------------------- generate


def add_generate(subparsers: Any) -> None:
    """`griffin generate`"""
    parser = add_parser(subparsers, "generate", "answer a prompt with target and draft", GENERATE_EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--draft", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the prompt; - reads it from stdin")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without chat template")
    parser.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=128, help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=non_negative_float, default=0.0, help="0 decodes greedily (default: %(default)s)"
    )
    parser.add_argument("--top-p", type=non_negative_float, help="nucleus sampling, with --temperature")
    parser.add_argument("--top-k", type=positive_int, help="top-k sampling, with --temperature")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    tree = parser.add_argument_group("draft tree (default: the draft's own settings)")
    tree.add_argument("--num-draft-tokens", metavar="N", type=positive_int, help="drafted tokens verified per cycle")
    tree.add_argument("--depth", metavar="N", type=positive_int, help="levels of the tree")
    tree.add_argument("--width", metavar="N", type=positive_int, help="tokens kept per level; 1 drafts a chain")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    """Streams the answer, then prints what the draft achieved."""
    import torch
    from transformers import AutoTokenizer, TextStreamer, set_seed

    from .evaluation.answers import answer_prompt
    from .evaluation.metrics import mean_acceptance_length

    quiet_transformers()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = load_target(args.target, dtype=args.dtype)
    target.to(device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
    draft = load_draft(args.draft, target, dtype=target.dtype)
    draft.to(device)  # type: ignore[arg-type]
    for name, value in (
        ("num_assistant_tokens", args.num_draft_tokens),
        ("draft_tree_depth", args.depth),
        ("draft_tree_top_k", args.width),
    ):
        if value is not None:
            setattr(draft.generation_config, name, value)
    if args.seed is not None:
        set_seed(args.seed)

    settings: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
        settings |= {name: value for name, value in sampling.items() if value is not None}
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    input_ids = encode(tokenizer, prompt, args.raw).to(device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = answer_prompt(target, input_ids, draft, streamer=streamer, **settings)
    print(
        f"[{len(answer.new_tokens)} tokens, {len(answer.acceptance_lengths)} cycles, "
        f"tau {mean_acceptance_length([answer.acceptance_lengths]):.2f}, {answer.tokens_per_second:.1f} tokens/s]"
    )


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: str, raw: bool) -> Any:
    """`prompt` as a `torch.LongTensor` of shape `(1, length)`, in the chat template if there is one."""
    if raw or tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    chat = [{"role": "user", "content": prompt}]
    encoded: Any = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return encoded["input_ids"]


# ---------------------------------------------------------------------- shared


def load_target(path_or_repo: str, dtype: str = "auto") -> "PreTrainedModel":
    """The target in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path_or_repo, dtype=dtype).eval()


def load_draft(
    path_or_repo: str, target: "PreTrainedModel", dtype: Any = "auto", **hub_kwargs: Any
) -> "GriffinDraftModel":
    """A draft in our format, or a released one in the dtype of its file, bound to the target."""
    from transformers import PreTrainedConfig

    from .configuration_griffin import GriffinDraftConfig
    from .conversion import convert_checkpoint
    from .modeling_griffin import GriffinDraftModel

    config, _ = PreTrainedConfig.get_config_dict(path_or_repo, **hub_kwargs)
    if config.get("model_type") != GriffinDraftConfig.model_type:
        return convert_checkpoint(path_or_repo, target=target, **hub_kwargs)
    return GriffinDraftModel.from_pretrained(path_or_repo, dtype=dtype, **hub_kwargs).eval().bind(target)


def quiet_transformers() -> None:
    """No progress bars: stdout and stderr belong to the answer and to errors."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def positive_int(text: str) -> int:
    """An argument that must be 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def non_negative_float(text: str) -> float:
    """An argument that must be 0 or more."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{value} is not 0 or more")
    return value


SUBCOMMANDS: tuple[Callable[[Any], None], ...] = (add_convert, add_generate)


if __name__ == "__main__":
    sys.exit(main())
