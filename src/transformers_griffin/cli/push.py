"""`griffin push`: a draft to the Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shared import add_parser, quiet_transformers


if TYPE_CHECKING:
    from ..modeling_griffin import GriffinDraftModel


EXAMPLES = """\
What goes up: weights, configuration, tree settings, a card, the results and the code that loads them, in one commit.
Log in first (`hf auth login`) or set HF_TOKEN. An interrupted push can be repeated.

examples:
  griffin push my-draft user/my-draft --target user/target --results results/ --dry-run
  griffin push my-draft user/my-draft --target user/target --results results/
  griffin push my-draft user/my-draft --target user/target --license apache-2.0 --private
"""


def add_to(subparsers: Any) -> None:
    """`griffin push`"""
    parser = add_parser(subparsers, "push", "publish a draft on the Hub", EXAMPLES)
    parser.add_argument("draft", metavar="DRAFT", help="directory of the draft, or a repository on the Hub")
    parser.add_argument("repo_id", metavar="REPO", help="repository to publish it in, made if it does not exist")
    parser.add_argument("--target", metavar="REPO", help="its target; what the draft's config.json names by default")
    parser.add_argument("--results", metavar="PATH", help="results.json of `griffin bench`, or its folder")
    parser.add_argument("--method", metavar="NAME", help="the draft's name in results about several drafts")
    parser.add_argument("--license", metavar="NAME", help="licence (default: the one that the target's card names)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="NAME", help="branch to push to, made if it does not exist")
    parser.add_argument("--token", help="access token (default: the one you are logged in with)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--commit-message", metavar="TEXT", help="title of the commit")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", default="50GB", help="largest weight file (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="write the folder and list it; upload nothing")
    parser.add_argument(
        "--folder", metavar="DIR", help="with --dry-run: folder to write (default: REPO's name in this directory)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Publishes the draft, or shows what would be published."""
    quiet_transformers()
    if args.folder and not args.dry_run:
        raise ValueError(f"`--folder {args.folder}` is for --dry-run; an upload leaves no folder behind.")
    draft = load(args.draft)
    about = {name: getattr(args, name) for name in ("target", "results", "method", "license", "token")}
    if args.dry_run:
        write(draft, args, about)
        return
    from ..hub import push_draft_to_hub

    hub = ("private", "revision", "create_pr", "commit_message", "max_shard_size")
    commit = push_draft_to_hub(draft, args.repo_id, **about, **{name: getattr(args, name) for name in hub})
    print(f"Published {commit.pr_url or commit.commit_url}")


def load(path_or_repo: str) -> "GriffinDraftModel":
    """The draft in the dtype of its file; it needs no target to be published."""
    from transformers import PreTrainedConfig

    from ..configuration_griffin import GriffinDraftConfig
    from ..modeling_griffin import GriffinDraftModel

    config, _ = PreTrainedConfig.get_config_dict(path_or_repo)
    if config.get("model_type") != GriffinDraftConfig.model_type:
        raise ValueError(
            f"{path_or_repo} has the model type {config.get('model_type')!r}, but {GriffinDraftConfig.model_type!r} "
            "can be published. Convert a released checkpoint first: `griffin convert`."
        )
    return GriffinDraftModel.from_pretrained(path_or_repo, dtype="auto")


def write(draft: "GriffinDraftModel", args: argparse.Namespace, about: dict[str, Any]) -> None:
    """The folder of a dry run, and what of it would go up."""
    from ..hub import draft_facts, write_draft_folder
    from ..hub.push import files_of

    folder = Path(args.folder or args.repo_id.split("/")[-1])
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not empty. Give another folder with --folder.")
    write_draft_folder(draft, folder, draft_facts(draft, args.repo_id, **about), args.max_shard_size)
    files = files_of(folder)
    for name, size in files.items():
        print(f"{size:>14,} bytes  {name}")
    print(f"{sum(files.values()):>14,} bytes  in {len(files)} files of {folder} would go to {args.repo_id}")
