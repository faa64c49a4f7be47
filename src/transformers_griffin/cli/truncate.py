"""`griffin truncate`: a draft that proposes frequent tokens only."""

import argparse
import json
import os
from typing import Any

from .convert import describe_draft
from .shared import add_data, add_parser, load_data, load_draft, positive_int, quiet_transformers, tokenize_data


EXAMPLES = """\
Drafting then reads only these tokens' rows of the target's LM head. Answers stay what they are, as the target chooses
from all tokens. Nothing is trained; of the target only configuration and tokenizer are read. The tokens are counted in
the assistant's messages of the data, which are those of `griffin prepare`. The last line of stdout is one JSON object.

examples:
  griffin truncate my-draft my-draft-32k --target user/target --data chats.jsonl --size 32768
  griffin truncate my-draft my-draft-32k --target user/target --data user/chats --split "train[:10%]" --size 32768
"""


def add_to(subparsers: Any) -> None:
    """`griffin truncate`"""
    parser = add_parser(subparsers, "truncate", "let a draft propose frequent tokens only", EXAMPLES)
    parser.add_argument("draft", metavar="DRAFT", help="directory or Hub repository of the draft")
    parser.add_argument("out", metavar="OUT", help="directory to write")
    parser.add_argument("--target", metavar="DIR_OR_REPO", required=True, help="what the draft was trained for")
    parser.add_argument("--size", metavar="N", type=positive_int, required=True, help="tokens to keep")
    add_data(parser)
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of DRAFT on the Hub")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Counts tokens, writes DRAFT into OUT, and says which share of the answers' tokens it can propose."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ..training.token_counts import count_tokens, frequent_tokens

    quiet_transformers()
    if os.path.isfile(args.out) or os.path.realpath(args.draft) == os.path.realpath(args.out):
        raise ValueError(f"OUT is {args.out}, which is a file or the draft itself. Give another directory.")
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.target))
    draft = load_draft(args.draft, target, **({"revision": args.revision} if args.revision else {}))
    counts = count_tokens(tokenize_data(args, load_data(args), tokenizer), draft.config.vocab_size)
    always = [*tokenizer.all_special_ids, *end_tokens(args.target)]
    draft.truncate_vocabulary(frequent_tokens(counts, args.size, always))
    draft.save_pretrained(args.out)
    print(f"Wrote {args.out}: {describe_draft(draft)}")
    kept = draft.to_target_ids(torch.arange(draft.config.proposal_vocab_size))
    print(
        json.dumps(
            {
                "draft_vocab_size": draft.config.draft_vocab_size,
                "vocab_size": draft.config.vocab_size,
                "num_counted": int(counts.sum()),
                "share_of_counted": float(counts[kept].sum() / counts.sum()),
            }
        )
    )


def end_tokens(target: str) -> list[int]:
    """What ends the target's answers: chat models often name more tokens in their generation config."""
    from transformers import GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME
    from transformers.utils.hub import cached_file

    if cached_file(target, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False) is None:
        return []
    eos = GenerationConfig.from_pretrained(target).eos_token_id
    return [] if eos is None else eos if isinstance(eos, list) else [eos]
