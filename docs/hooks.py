"""
What the pages do not write down twice: `{{ commands }}` becomes the help of every subcommand, `{{ arguments NAME }}` a
table of a dataclass's fields, and `[Name]` in docstrings, Hugging Face's way to name a class, a link.
"""

import os
import re
from dataclasses import fields
from typing import Any
from unittest import mock


CROSS_REFERENCE = re.compile(r"\[<code>(~?)([\w.]+)</code>\]")
TYPE_IN_DOCSTRING = re.compile(r"<code>([^<\n]*`[^<\n]*)</code>")  # such as [`~transformers.PreTrainedModel`]


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Fills a page's placeholders."""
    markdown = re.sub(
        r"^{{ arguments (\w+) }}$", lambda found: arguments_table(found[1]), markdown, flags=re.MULTILINE
    )
    return re.sub(r"^{{ commands }}$", lambda _: commands_reference(), markdown, flags=re.MULTILINE)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Links classes and functions that docstrings name; those that no page describes stay text."""
    html = TYPE_IN_DOCSTRING.sub(lambda found: f"<code>{plain_type(found[1])}</code>", html)
    return CROSS_REFERENCE.sub(lambda found: cross_reference(found[2], is_short=bool(found[1])), html)


def plain_type(text: str) -> str:
    """A type without the marks of Hugging Face docstrings."""
    return re.sub(r"\[`~?(?:\w+\.)*(\w+)`\]", r"\1", text).replace("`", "")


def cross_reference(name: str, is_short: bool) -> str:
    """`Name` as an optional link to where it is described."""
    text = name.rpartition(".")[2] if is_short else name
    identifier = identifiers().get(name.removeprefix("transformers_griffin.").rpartition(".")[2])
    if identifier is None:
        return f"<code>{text}</code>"
    return f'<autoref identifier="{identifier}" optional><code>{text}</code></autoref>'


def identifiers() -> dict[str, str]:
    """Every public name with the path under which the reference describes it; the package's own names win."""
    from transformers_griffin import __all__ as package_names
    from transformers_griffin import evaluation, hub, training

    found = {}
    for room in (evaluation, hub, training):
        found |= {name: f"{room.__name__}.{name}" for name in room.__all__}
    return found | {name: f"transformers_griffin.{name}" for name in package_names}


def commands_reference() -> str:
    """A section for each subcommand: its help, as the terminal shows it."""
    from transformers_griffin.cli import SUBCOMMANDS, build_parser

    choices = next(action.choices for action in build_parser()._actions if action.dest == "command")
    names = [module.__name__.rpartition(".")[2] for module in SUBCOMMANDS]
    with mock.patch.dict(os.environ, COLUMNS="100"):
        return "\n\n".join(f"## griffin {name}\n\n```text\n{choices[name].format_help()}```" for name in names)


def arguments_table(class_name: str) -> str:
    """A table of a dataclass's own fields: name, default and the help that stands beside it in the code."""
    from transformers_griffin import training

    kind = getattr(training, class_name)
    inherited = {
        item.name for base in kind.__mro__[1:] if hasattr(base, "__dataclass_fields__") for item in fields(base)
    }
    rows = [
        f"| `{item.name}` | `{item.default}` | {item.metadata['help']} |"
        for item in fields(kind)
        if item.name not in inherited
    ]
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows])
