"""A page to click: plain and GRIFFIN answers side by side (`griffin demo`)."""

from .pair import Pair, TreeSettings
from .streaming import Progress, stream_answer


__all__ = ["Pair", "TreeSettings", "Progress", "stream_answer"]
