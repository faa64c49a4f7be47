"""
How pictures look and how they are written: matplotlib without pyplot, which would choose a window system.

Methods have the same colour in all pictures: plain decoding grey, the others from the palette of Okabe and Ito, which
colour-blind readers can tell apart.

Next: `plots.py`, which draws.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..results import Method
from .tables import is_plain


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b5a800")
GREYS = ("#8c959f", "#5c656f", "#b8bfc6")
MARKERS = "osD^vPX*"
INK = "#1f2328"  # text and axes
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#8c959f",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    hatch: str  # tells colours apart that had to be used twice


@dataclass(frozen=True)
class Picture:
    """A figure with what a file or page needs to know of it."""

    name: str  # of its file
    title: str
    figure: "Figure"

    def png(self) -> bytes:
        """On white."""
        file = io.BytesIO()
        with style():
            self.figure.savefig(file, format="png", dpi=150, facecolor="white")
        return file.getvalue()

    def svg(self) -> str:
        """For a page: no background, text and axes in the page's colour, no identifiers but those it refers to."""
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with style(**{"svg.hashsalt": self.name}):  # pictures of one page do not share identifiers
            self.figure.savefig(file, format="svg", transparent=True, metadata=metadata)
        text = file.getvalue()
        return re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :]).replace(INK, "currentColor")


@contextmanager
def style(**more: Any) -> Iterator[None]:
    """Matplotlib with the look of all pictures; what was set before is set again afterwards."""
    import matplotlib

    with matplotlib.rc_context(STYLE | more):
        yield


def looks(methods: Sequence[Method]) -> dict[str, Look]:
    """How each method is drawn, by its name."""
    found, counts = {}, {True: 0, False: 0}
    for number, method in enumerate(methods):
        colours = GREYS if is_plain(method) else PALETTE
        used = counts[is_plain(method)]
        counts[is_plain(method)] += 1
        hatch = ("", "///", "...")[used // len(colours) % 3]
        found[method.name] = Look(colours[used % len(colours)], MARKERS[number % len(MARKERS)], hatch)
    return found
