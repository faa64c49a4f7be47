"""
The `griffin` command: one subcommand per job, each a thin layer over a public function.

Exit status: 0 done, 1 the job failed (one line on stderr, the traceback with `--debug`), 2 wrong usage.

A new subcommand is a function that adds its parser and names its `run`, listed in `SUBCOMMANDS`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .modeling_griffin import GriffinDraftModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXAMPLES = """\
examples:
  griffin convert user/griffin-release my-draft --target user/target
  griffin convert my-draft released --target user/target --to released
  griffin generate --target user/target --draft my-draft --prompt "Why is the sky blue?"
  griffin plan --target user/target
  griffin prepare --target user/target --data chats.jsonl --output features
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
PLAN_EXAMPLES = """\
Only the target's config.json is read. All numbers but the parameter counts are estimates; the last line of stdout is
one JSON object.

examples:
  griffin plan --target user/target
  griffin plan --target path/to/config.json --stored-features --gpu H100
  griffin plan --target user/target --tokens 500000000 --epochs 2 --target-bits 4 --batch-size 1
"""
PREPARE_EXAMPLES = """\
Data are JSON-lines files, a `datasets` directory or a dataset on the Hub, with rows of `messages` (or ShareGPT's
`conversations`) or `text`. Run the same command again after an interruption: it continues with the next shard.

examples:
  griffin prepare --target user/target --data chats.jsonl --output answers --regenerate
  griffin prepare --target user/target --data answers --output features --pack
  griffin prepare --target user/target --data user/chats --split "train[:10%]" --output features --max-length 4096
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
        description="GRIFFIN speculative decoding: convert drafts, generate with them, plan their training.",
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
    add_sampling(parser)
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    tree = parser.add_argument_group("draft tree (default: the draft's own settings)")
    tree.add_argument("--num-draft-tokens", metavar="N", type=positive_int, help="drafted tokens verified per cycle")
    tree.add_argument("--depth", metavar="N", type=positive_int, help="levels of the tree")
    tree.add_argument("--width", metavar="N", type=positive_int, help="tokens kept per level; 1 drafts a chain")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    """Streams the answer, then prints what the draft achieved."""
    from transformers import AutoTokenizer, TextStreamer, set_seed

    from .evaluation.answers import answer_prompt
    from .evaluation.metrics import mean_acceptance_length

    quiet_transformers()
    device = args.device or default_device()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target = load_target(args.target, args.dtype, device)
    draft = load_draft(args.draft, target, dtype=target.dtype)
    draft.to(device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
    for name, value in (
        ("num_assistant_tokens", args.num_draft_tokens),
        ("draft_tree_depth", args.depth),
        ("draft_tree_top_k", args.width),
    ):
        if value is not None:
            setattr(draft.generation_config, name, value)
    if args.seed is not None:
        set_seed(args.seed)

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    input_ids = encode(tokenizer, prompt, args.raw).to(device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = answer_prompt(
        target, input_ids, draft, streamer=streamer, max_new_tokens=args.max_new_tokens, **sampling(args)
    )
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


# ---------------------------------------------------------------------- plan


def add_plan(subparsers: Any) -> None:
    """`griffin plan`"""
    parser = add_parser(
        subparsers, "plan", "estimate what training a draft takes, before anything starts", PLAN_EXAMPLES
    )
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True, help="or the path of a config.json")
    parser.add_argument("--num-passes", metavar="N", type=positive_int, help="passes of a training step (default: 3)")
    parser.add_argument(
        "--tokens", metavar="N", type=positive_int, help="tokens of the data (default: ShareGPT, 102 million)"
    )
    parser.add_argument("--epochs", metavar="N", type=positive_int, help="how often they are seen (default: 20)")
    parser.add_argument("--max-length", metavar="N", type=positive_int, help="tokens of a row (default: 2048)")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, help="rows a device and step (default: 4)")
    parser.add_argument("--target-bits", metavar="N", type=int, help="16, 8 or 4 bits a target weight (default: 16)")
    parser.add_argument("--gpu", help="A100, H100, H200, L40S or RTX4090 (default: A100)")
    parser.add_argument("--stored-features", action="store_true", help="features from disk, not computed online")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> None:
    """Prints the plan as a table, then as one JSON object."""
    from transformers import AutoConfig

    from .training.plan import PlanSettings, format_plan, paper_calibration, plan_training

    given = {field.name: getattr(args, field.name) for field in fields(PlanSettings) if hasattr(args, field.name)}
    settings = PlanSettings(**{name: value for name, value in given.items() if value is not None})
    quiet_transformers()
    plan = plan_training(AutoConfig.from_pretrained(args.target), settings)
    print(format_plan(plan, paper_calibration()))
    print(json.dumps({"target": args.target} | plan.as_dict()))


# ---------------------------------------------------------------------- prepare


def add_prepare(subparsers: Any) -> None:
    """`griffin prepare`"""
    parser = add_parser(
        subparsers, "prepare", "store the target's features, or its own answers, for training", PREPARE_EXAMPLES
    )
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True)
    parser.add_argument("--data", metavar="SOURCE", nargs="+", required=True, help="files, or a directory or dataset")
    parser.add_argument("--output", metavar="DIR", required=True, help="directory to write, or to continue")
    parser.add_argument("--split", default="train", help="of data with splits (default: %(default)s)")
    parser.add_argument("--data-name", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--max-length", metavar="N", type=positive_int, default=2048, help="tokens kept of a row")
    parser.add_argument("--pack", action="store_true", help="pack conversations into rows of --max-length tokens")
    parser.add_argument("--all-tokens", action="store_true", help="train on all tokens, not on the assistant's only")
    parser.add_argument("--num-proc", metavar="N", type=positive_int, help="processes that tokenize")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive_int, default=8, help="rows at once (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-size", metavar="N", type=positive_int, default=256, help="rows of a shard (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the target (default: %(default)s)")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the target on the Hub")
    parser.add_argument("--force", action="store_true", help="start although the disk has too little space")
    answers = parser.add_argument_group("the target's own answers")
    answers.add_argument("--regenerate", action="store_true", help="write conversations answered by the target")
    answers.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=512, help="default: %(default)s")
    add_sampling(answers)
    answers.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    parser.set_defaults(run=run_prepare)


def run_prepare(args: argparse.Namespace) -> None:
    """Stores features of the data, or regenerates its answers."""
    from transformers import AutoConfig, AutoTokenizer

    from .training.regenerate import regenerate_answers
    from .training.sources import load_training_data, tokenize_dataset
    from .training.stored_features import plan_features, prepare_features

    quiet_transformers()
    hub_kwargs = {"revision": args.revision} if args.revision else {}
    load_kwargs = {"name": args.data_name} if args.data_name else {}
    source = args.data[0] if len(args.data) == 1 else args.data
    rows = load_training_data(source, split=args.split, **load_kwargs)
    tokenizer = AutoTokenizer.from_pretrained(args.target, **hub_kwargs)
    batches = {"batch_size": args.batch_size, "shard_size": args.shard_size}
    if args.regenerate:
        target = load_target(args.target, args.dtype, args.device or default_device(), **hub_kwargs)
        lengths = {"max_length": args.max_length, "max_new_tokens": args.max_new_tokens}
        regenerate_answers(
            target, tokenizer, rows, args.output, seed=args.seed, **lengths, **batches, **sampling(args)
        )
    else:
        tokens = tokenize_dataset(
            rows, tokenizer, args.max_length, not args.all_tokens, pack=args.pack, num_proc=args.num_proc
        )
        hidden_size = AutoConfig.from_pretrained(args.target, **hub_kwargs).get_text_config().hidden_size
        print(f"{args.output} will take {plan_features(tokens, hidden_size)}.", flush=True)
        target = load_target(args.target, args.dtype, args.device or default_device(), **hub_kwargs)
        prepare_features(target, tokenizer, tokens, args.output, force=args.force, **batches)
    print(f"Wrote {args.output}: {'answers' if args.regenerate else 'features'} of {args.target}")


# ---------------------------------------------------------------------- shared


def load_target(
    path_or_repo: str, dtype: str = "auto", device: str | None = None, **hub_kwargs: Any
) -> "PreTrainedModel":
    """The target in evaluation mode."""
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(path_or_repo, dtype=dtype, **hub_kwargs).eval()
    return target if device is None else target.to(device)


def default_device() -> str:
    """A GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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


def add_sampling(parser: Any) -> None:
    """How the target chooses a token; read by `sampling`."""
    parser.add_argument(
        "--temperature", type=non_negative_float, default=0.0, help="0 decodes greedily (default: %(default)s)"
    )
    parser.add_argument("--top-p", type=non_negative_float, help="nucleus sampling, with --temperature")
    parser.add_argument("--top-k", type=positive_int, help="top-k sampling, with --temperature")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate()` that `add_sampling` asked for."""
    if args.temperature == 0:
        return {"do_sample": False}
    settings = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    return {name: value for name, value in settings.items() if value is not None}


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


SUBCOMMANDS: tuple[Callable[[Any], None], ...] = (add_convert, add_generate, add_plan, add_prepare)


if __name__ == "__main__":
    sys.exit(main())
