"""
Pictures of a benchmark: SR and tau with intervals, acceptance by depth, misaligned chains by pass, a cycle's time.

They are drawn of what was measured; a picture of which nothing was measured is left out.

Next: `page.py`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..results import BenchmarkResults, Estimate, Setting, Summary
from .pictures import INK, Picture, looks, style
from .tables import by_key, domains_of, shares_of
from .texts import domain_title


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {  # of a cycle: colour, and that of the number on it
    "draft": ("#e69f00", "black"),
    "verify": ("#0072b2", "white"),
    "host": ("#b8bfc6", "black"),
}
PANELS_PER_ROW = 2
Choice = Callable[[Summary], Any]  # a figure of a summary


def draw_pictures(results: BenchmarkResults) -> list[Picture]:
    """
    Draws what was measured.

    Args:
        results ([`BenchmarkResults`]): what `griffin bench` left behind.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with style():
        drawn = [
            Picture("speed_and_acceptance", "Speed and acceptance", draw_bars(results)),
            Picture("acceptance_by_depth", "Acceptance by depth of the tree", draw_acceptance(results)),
            Picture("misaligned_by_pass", "Misaligned chains by pass of the draft", draw_misaligned(results)),
            Picture("cycle_time", "Where a cycle's time goes", draw_cycle_time(results)),
        ]
    return [picture for picture in drawn if picture.figure.axes]


def draw_bars(results: BenchmarkResults) -> "Figure":
    """A row a setting: SR on the left, tau on the right; a group of bars a domain; plain decoding as a dashed line."""
    panels: dict[str, Choice] = {
        "SR, speed over plain eager": lambda s: s.speedup_over_eager,
        "τ, tokens per cycle": lambda s: s.tau,
    }
    shown = [s for s in results.settings if any(_chosen(results, s, choose) for choose in panels.values())]
    figure = _figure(11, 0.5 + 2.6 * len(shown))
    for row, setting in enumerate(shown):
        for column, (title, choose) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(len(shown), 2, 2 * row + column, title=f"{setting.name} · {title}")
            _draw_groups(axes, results, _chosen(results, setting, choose))
    _legend(figure)
    return figure


def _draw_groups(axes: "Axes", results: BenchmarkResults, bars: dict[tuple[str, str], Estimate]) -> None:
    """Bars by method and domain, with their intervals."""
    domains, method_looks = domains_of(results), looks(results.methods)
    names = [method.name for method in results.methods if method.name in {name for name, _ in bars}]
    width = min(0.84 / max(1, len(names)), 0.05 * (1 + len(domains)))  # few bars stay slim
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        points = {domains.index(domain) + offset: value for (method, domain), value in bars.items() if method == name}
        axes.bar(
            list(points),
            [estimate.value for estimate in points.values()],
            width=0.9 * width,
            yerr=[
                [max(0, estimate.value - estimate.low) for estimate in points.values()],
                [max(0, estimate.high - estimate.value) for estimate in points.values()],
            ],
            error_kw={"ecolor": INK, "elinewidth": 0.9},
            color=method_looks[name].colour,
            hatch=method_looks[name].hatch,
            label=name,
        )
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(domains)), [domain_title(domain) for domain in domains])
    axes.set_xlim(-0.5, len(domains) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")


def draw_acceptance(results: BenchmarkResults) -> "Figure":
    """Curves of the share of cycles that accept at least i draft tokens."""
    return _draw_curves(results, lambda s: s.acceptance_by_depth or None, "depth i", "cycles that accept i or more")


def draw_misaligned(results: BenchmarkResults) -> "Figure":
    """Curves of the share of chains in which the draft missed a token in one of the passes 1 .. n."""
    return _draw_curves(results, lambda s: s.misaligned_rates or None, "pass n", "chains misaligned by pass n")


def _draw_curves(results: BenchmarkResults, choose: Choice, x_label: str, y_label: str) -> "Figure":
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    method_looks = looks(results.methods)
    panels = _overall(results, choose)
    figure = _figure(11, 0.5 + 3 * -(-len(panels) // PANELS_PER_ROW))
    for axes, (setting, curves) in zip(_grid(figure, len(panels)), panels.items(), strict=True):
        for name, values in curves.items():
            look = method_looks[name]
            passes = range(1, len(values) + 1)
            axes.plot(passes, values, color=look.colour, marker=look.marker, markersize=5, label=name)
        axes.set(title=setting, xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y")
    _legend(figure)
    return figure


def draw_cycle_time(results: BenchmarkResults) -> "Figure":
    """Bars as long as a cycle costs, in plain decoding steps; as long as each other if that is not known of all."""
    panels = _overall(results, lambda s: (shares, s.cycle_cost) if (shares := shares_of(s)) else None)
    has_costs = all(cost is not None for bars in panels.values() for _, cost in bars.values())
    most = max(map(len, panels.values()), default=0)
    figure = _figure(11, 0.5 + (0.9 + 0.36 * most) * -(-len(panels) // PANELS_PER_ROW))
    for axes, (setting, bars) in zip(_grid(figure, len(panels)), panels.items(), strict=True):
        for name, (shares, cost) in bars.items():
            _draw_parts(axes, name, shares, cost if has_costs else 100)
        axes.set(title=setting, xlabel="plain decoding steps" if has_costs else "% of the time")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    _legend(figure)
    return figure


def _draw_parts(axes: "Axes", name: str, shares: Sequence[float], length: float) -> None:
    left = 0.0
    for (part, (colour, ink)), share in zip(PARTS.items(), shares, strict=True):
        bar = axes.barh(name, share * length, left=left, height=0.7, color=colour, label=part)
        if share > 0.08:  # otherwise the number does not fit
            axes.bar_label(bar, [f"{100 * share:.0f} %"], label_type="center", color=ink, fontsize=8)
        left += share * length


def _chosen(results: BenchmarkResults, setting: Setting, choose: Choice) -> dict[tuple[str, str], Any]:
    """What was measured under a setting, by method and domain, but for plain eager decoding: all compare with it."""
    domains = domains_of(results)
    methods = {method.name for method in results.methods if method.kind != "plain"}
    return {
        (summary.method, summary.domain): value
        for summary in results.summaries
        if summary.setting == setting.name and summary.domain in domains and summary.method in methods
        if (value := choose(summary)) is not None
    }


def _overall(results: BenchmarkResults, choose: Choice) -> dict[str, dict[str, Any]]:
    """What was measured over all domains, by setting and method; settings of which nothing was are left out."""
    summaries, domain = by_key(results), domains_of(results)[-1]
    panels = {
        setting.name: {
            method.name: value
            for method in results.methods
            if (summary := summaries.get((setting.name, method.name, domain)))
            and (value := choose(summary)) is not None
        }
        for setting in results.settings
    }
    return {setting: values for setting, values in panels.items() if values}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))


def _grid(figure: "Figure", num_panels: int) -> list["Axes"]:
    num_rows = -(-num_panels // PANELS_PER_ROW)
    return [figure.add_subplot(num_rows, PANELS_PER_ROW, number) for number in range(1, num_panels + 1)]


def _legend(figure: "Figure") -> None:
    """One for all panels, above them."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        num_columns = max(1, 130 // (8 + max(map(len, entries))))  # of characters that a line holds
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=num_columns)
