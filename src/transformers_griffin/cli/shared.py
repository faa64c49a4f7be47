"""What several subcommands have in common: parsers, loading, checks of arguments."""

import argparse
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..modeling_griffin import GriffinDraftModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
SHAPES = "llama-3-8b, llama-2-7b, qwen2-7b or tiny"  # of random weights; `evaluation/synthetic_pair.py` has them


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
    """
    A draft in our format, or a released one in the dtype of its file, bound to the target. Of a target on the meta
    device only the configuration is compared.
    """
    from .. import conversion

    return conversion.load_draft(path_or_repo, target, dtype, **hub_kwargs)


def add_data(parser: Any) -> None:
    """Which rows to read, and how to tokenize them; read by `load_data` and `tokenize_data`."""
    parser.add_argument("--data", metavar="SOURCE", nargs="+", required=True, help="files, or a directory or dataset")
    parser.add_argument("--split", default="train", help="of data with splits (default: %(default)s)")
    parser.add_argument("--data-name", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--max-length", metavar="N", type=positive_int, default=2048, help="tokens kept of a row")
    parser.add_argument("--all-tokens", action="store_true", help="read all tokens as the assistant's")
    parser.add_argument("--num-proc", metavar="N", type=positive_int, help="processes that tokenize")


def load_data(args: argparse.Namespace) -> "Dataset":
    """The rows that `add_data` asked for."""
    from ..training.sources import load_training_data

    load_kwargs = {"name": args.data_name} if args.data_name else {}
    return load_training_data(args.data[0] if len(args.data) == 1 else args.data, split=args.split, **load_kwargs)


def tokenize_data(args: argparse.Namespace, rows: "Dataset", tokenizer: Any, pack: bool = False) -> "Dataset":
    """These rows tokenized as `add_data` asked for."""
    from ..training.sources import tokenize_dataset

    return tokenize_dataset(rows, tokenizer, args.max_length, not args.all_tokens, pack=pack, num_proc=args.num_proc)


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
