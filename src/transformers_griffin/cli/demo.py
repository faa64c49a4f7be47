"""`griffin demo`: a page to click."""

import argparse
from pathlib import Path
from typing import Any

from .shared import DTYPES, add_parser, default_device, load_draft, load_target, positive_int, quiet_transformers


MINI_PAIR = Path(__file__).parents[3] / "examples" / "mini"  # in a checkout; wheels do not carry it
EXAMPLES = """\
Streams plain and GRIFFIN answers side by side, with the drafted tree. Works offline, and needs Gradio:
pip install "transformers-griffin[demo]". In a checkout, --target and --draft may be left out: the mini pair answers.

examples:
  griffin demo
  griffin demo --target user/target --draft my-draft --dtype bfloat16 --port 8080
"""


def add_to(subparsers: Any) -> None:
    """`griffin demo`"""
    parser = add_parser(subparsers, "demo", "show plain and GRIFFIN answers on a page", EXAMPLES)
    parser.add_argument("--target", metavar="DIR_OR_REPO", help="default: the mini pair's, in a checkout")
    parser.add_argument("--draft", metavar="DIR_OR_REPO", help="default: the mini pair's, in a checkout")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 for the mini pair, else auto")
    parser.add_argument("--device", help="for example cuda or cpu (default: cuda if there is one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", metavar="N", type=positive_int, help="default: the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Loads the pair and serves the page until it is interrupted."""
    try:
        from ..demo_page.page import build_page, launch_page, warm_up
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(
            'The page needs Gradio. Install it: pip install "transformers-griffin[demo]".'
        ) from error

    quiet_transformers()
    pair = load_pair(args)
    warm_up(pair)
    launch_page(build_page(pair), args.host, args.port, inbrowser=args.open)


def load_pair(args: argparse.Namespace) -> Any:
    """
    The [`Pair`] that the arguments name.

    Raises:
        ValueError: if one of target and draft is missing, or both where there is no checkout.
    """
    from transformers import AutoTokenizer

    from ..demo_page import Pair

    if (args.target is None) != (args.draft is None):
        raise ValueError("Give --target and --draft, or neither for the mini pair.")
    target_name, draft_name, dtype = args.target, args.draft, args.dtype
    if target_name is None:
        if not MINI_PAIR.is_dir():
            raise ValueError("The mini pair is part of the checkout, not of the package. Give --target and --draft.")
        target_name, draft_name, dtype = str(MINI_PAIR / "target"), str(MINI_PAIR / "draft"), dtype or "float32"
    target = load_target(target_name, dtype or "auto", args.device or default_device())
    draft = load_draft(draft_name, target, dtype=target.dtype)
    draft.to(target.device)  # type: ignore[arg-type]  # transformers wraps `Module.to` untyped
    return Pair(target, draft, AutoTokenizer.from_pretrained(target_name))
