"""
How figures are written: digits, units, intervals, and what stands for a figure that nobody measured.

Next: `tables.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from ..results import ALL_DOMAINS, Estimate


MISSING = "–"
DOMAIN_TITLES = {"mt_bench": "MT-bench", "humaneval": "HumanEval", "gsm8k": "GSM8K", ALL_DOMAINS: "All"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """`1.53` or `1.53×`; a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}{unit}"


def write_estimate(estimate: Estimate | None, digits: int = 2, unit: str = "") -> str:
    """`1.53× [1.49, 1.57]`; a dash for None."""
    if estimate is None:
        return MISSING
    return f"{estimate.value:.{digits}f}{unit} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def write_share(share: float | None) -> str:
    """`61 %`; a dash for None."""
    return MISSING if share is None else f"{100 * share:.0f} %"


def write_milliseconds(seconds: float | None) -> str:
    """`23.1 ms`; a dash for None."""
    return MISSING if seconds is None else f"{1000 * seconds:.1f} ms"


def write_bytes(num_bytes: int | None) -> str:
    """`1.23GB`; a dash for None."""
    return MISSING if num_bytes is None else tqdm.format_sizeof(num_bytes, suffix="B")


def write_parameters(count: int | None) -> str:
    """`12.3M`; a dash for None."""
    return MISSING if count is None else tqdm.format_sizeof(count)


def write_mark(number: int) -> str:
    """The mark of a note: `¹`. Digits of their own need no markup, in Markdown or in HTML."""
    return str(number).translate(SUPERSCRIPTS)


def domain_title(domain: str) -> str:
    """As papers write it."""
    return DOMAIN_TITLES.get(domain, domain)


def flatten(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """
    The leaves of nested mappings as text, with dotted names.

    Example: `{"versions": {"torch": "2.13.0"}}` has the leaf `("versions.torch", "2.13.0")`.
    """
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        yield name, ", ".join(map(str, content))
    else:
        yield name, MISSING if content is None else str(content)
