"""
Draws the tree of one cycle as SVG: text that a notebook, a page or a browser shows, without further packages.

The root is on the left and levels go to the right; siblings stand below each other, the most probable on top, so that
the draft's best guess is the first line::

    root -- A -- B
         |    `- C
         `- D

Each box shows the token and the draft's probability of it. The accepted path is green, the token that the target added
blue.

Next: `answers.py`.
"""

import html
import re
import unicodedata
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .cycle_trees import CycleTree


ROW, BOX, GAP, MARGIN = 30, 22, 46, 16  # heights of rows and boxes, space between levels and around: pixels
CHARACTER, PERCENT = 7.3, 34  # widths of a monospace character and of a probability: pixels
MAX_LABEL = 16  # characters of a token that are shown
LEGEND = (
    ("root", "chosen before"),
    ("accepted", "drafted, accepted"),
    ("rejected", "drafted, rejected"),
    ("bonus", "added by the target"),
)
STYLE = """\
.tree{background:#fff;border-radius:10px;max-width:100%;height:auto}
.tree text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#334155}
.tree .small{font-size:10px;fill:#64748b}
.tree .title{font:600 13px ui-sans-serif,system-ui,sans-serif;fill:#0f172a}
.tree .word{font:11px ui-sans-serif,system-ui,sans-serif;fill:#475569}
.tree rect{stroke-width:1.2}
.tree .root rect{fill:#334155;stroke:#334155}.tree .root text{fill:#fff}
.tree .accepted rect{fill:#dcfce7;stroke:#16a34a}.tree .accepted text{fill:#14532d}
.tree .accepted .small{fill:#15803d}
.tree .rejected rect{fill:#f8fafc;stroke:#cbd5e1}
.tree .bonus rect{fill:#dbeafe;stroke:#2563eb;stroke-dasharray:4 2}.tree .bonus text{fill:#1e3a8a}
.tree path{fill:none;stroke:#cbd5e1}
.tree path.accepted{stroke:#16a34a}.tree path.bonus{stroke:#2563eb;stroke-dasharray:4 2}"""


@dataclass(frozen=True)
class Box:
    """A node on the drawing."""

    kind: str  # root, accepted, rejected or bonus
    label: str
    parent: int  # of the boxes; the root is its own
    level: int
    row: int  # from the top; a parent stands in the row of its first child
    probability: float | None  # the draft's; None for what the target chose


def draw_tree(cycle: CycleTree, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Draws one cycle.

    Args:
        cycle ([`CycleTree`]): from [`cycle_trees`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of the target; writes the tokens.

    Returns:
        `str`: an `<svg>` element. In a notebook: `IPython.display.SVG(draw_tree(cycle, tokenizer))`.
    """
    boxes = lay_out(cycle, tokenizer)
    widths = _level_widths(boxes)
    lefts = [MARGIN + sum(widths[:level]) + GAP * level for level in range(len(widths))]
    top, bottom = MARGIN + 34, ROW * (max(box.row for box in boxes) + 1)
    legend, legend_width = _legend(top + bottom + 18)
    width, height = max(lefts[-1] + widths[-1], legend_width) + MARGIN, top + bottom + 18 + MARGIN
    middles = [top + ROW * box.row + ROW / 2 for box in boxes]
    num_drafted, num_accepted = len(cycle.tokens) - 1, len(cycle.accepted) - 1
    title = f"{num_accepted} of {num_drafted} drafted tokens accepted, {cycle.num_emitted} emitted"
    parts = [
        f'<svg class="tree" xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{title}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 10}">{title}</text>',
    ]
    # Rejected branches first, so that the accepted path lies on top.
    for i in sorted(range(1, len(boxes)), key=lambda i: boxes[i].kind != "rejected"):
        box, parent = boxes[i], boxes[boxes[i].parent]
        start = (lefts[parent.level] + widths[parent.level], middles[box.parent])
        parts.append(_edge(start, (lefts[box.level], middles[i]), box))
    parts += [
        _box(box, lefts[box.level], middle, widths[box.level]) for box, middle in zip(boxes, middles, strict=True)
    ]
    return "".join([*parts, legend, "</svg>"])


def lay_out(cycle: CycleTree, tokenizer: PreTrainedTokenizerBase) -> list[Box]:
    """
    Where every node goes: level by depth, each leaf in a row of its own, each parent in the row of its first child.

    Returns:
        `list[Box]`: node i is box i; the token that the target added, if any, is the last one.
    """
    children = [cycle.children(node) for node in range(len(cycle.tokens))]
    bonus = len(cycle.tokens)
    if cycle.bonus is not None:
        children[cycle.accepted[-1]].append(bonus)
        children.append([])
    levels, rows, num_leaves = {0: 0}, {}, 0
    waiting = [0]
    while waiting:  # depth first, so a node's first child comes right behind it
        node = waiting.pop()
        rows[node] = num_leaves
        num_leaves += not children[node]
        levels |= dict.fromkeys(children[node], levels[node] + 1)
        waiting += reversed(children[node])
    boxes = []
    for node, token in enumerate(cycle.tokens):
        kind = "root" if node == 0 else "accepted" if node in cycle.accepted else "rejected"
        probability = cycle.probability(node) if node else None
        parent = cycle.parents[node]
        boxes.append(Box(kind, label_of(token, tokenizer), parent, levels[node], rows[node], probability))
    if cycle.bonus is not None:
        label = label_of(cycle.bonus, tokenizer)
        boxes.append(Box("bonus", label, cycle.accepted[-1], levels[bonus], rows[bonus], None))
    return boxes


def label_of(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A token's text with its spaces (`␣`), line ends (`⏎`) and tabs (`⇥`) made visible; `…` where it is cut.
    """
    # Decoders may drop a leading space at the start of a text, so the token is read behind itself.
    twice, once = (str(tokenizer.decode([token] * count)) for count in (2, 1))
    text = twice[len(once) :]
    text = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def _level_widths(boxes: list[Box]) -> list[float]:
    """The widest box of each level, in pixels."""
    widths = [0.0] * (1 + max(box.level for box in boxes))
    for box in boxes:
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in box.label)
        width = CHARACTER * max(len(box.label) + wide, 1) + 14 + (0 if box.probability is None else PERCENT)
        widths[box.level] = max(widths[box.level], width)
    return widths


def _edge(start: tuple[float, float], end: tuple[float, float], box: Box) -> str:
    """A curve to a box; the likelier, the thicker."""
    (x0, y0), (x1, y1) = start, end
    middle, thickness = (x0 + x1) / 2, 1 + 3 * (box.probability or 0)
    curve = f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    return f'<path class="{box.kind}" stroke-width="{thickness:.1f}" d="{curve}"/>'


def _box(box: Box, left: float, middle: float, width: float) -> str:
    percent, told = "", "chosen by the target"
    if box.probability is not None:
        told = f"draft: {box.probability:.1%}, {box.kind}"
        percent = (
            f'<text class="small" x="{left + width - 7:.1f}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{html.escape(_percent(box.probability))}</text>"
        )
    return (
        f'<g class="{box.kind}"><title>{html.escape(box.label)} ({told})</title>'
        f'<rect x="{left:.1f}" y="{middle - BOX / 2:.1f}" width="{width:.1f}" height="{BOX}" rx="6"/>'
        f'<text x="{left + 7:.1f}" y="{middle + 4:.1f}">{html.escape(box.label)}</text>{percent}</g>'
    )


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.005 else "<1%"


def _legend(middle: float) -> tuple[str, float]:
    """The legend's elements and where it ends, in pixels."""
    parts, left = [], float(MARGIN)
    for kind, words in LEGEND:
        parts.append(
            f'<g class="{kind}"><rect x="{left:.1f}" y="{middle - 6:.1f}" width="14" height="12" rx="3"/></g>'
            f'<text class="word" x="{left + 20:.1f}" y="{middle + 4:.1f}">{words}</text>'
        )
        left += 20 + 6.2 * len(words) + 18
    return "".join(parts), left


__all__ = ["draw_tree", "label_of"]
