"""
Tables and a picture from what `ablations.py` measured.

    python trainers/mini_pair/ablations_report.py --runs_dir runs/mini_pair/ablations
    python trainers/mini_pair/ablations_report.py --runs_dir runs/mini_pair/ablations --output_dir /tmp/report

Writes `results.json` (tokens and cycles of every prompt, so that every figure can be made again), `tables.md` and
`tau.png`. Intervals are 95 % bootstrap intervals over the prompts; gains are paired, on the same answers. Seeds of a
row are pooled prompt by prompt, and a gain is taken over the seeds that both rows have. The last line of stdout is
one JSON object.
"""

import argparse
import json
from pathlib import Path

from transformers_griffin.evaluation import bootstrap_interval, paired_ratio_interval


# title -> (row, what it is)
TABLES: dict[str, list[tuple[str, str]]] = {
    "Methods (Table 1)": [
        ("eagle2", "EAGLE-2"),
        ("fspad", "like FSPAD (EAGLE-2 with two heads)"),
        ("hass", "HASS"),
        ("hass_wide", "HASS, as many parameters"),
        ("griffin", "GRIFFIN"),
    ],
    "Parts of the method (Table 2)": [
        ("griffin", "GRIFFIN"),
        ("without_tat", "w/o token-alignable training (one pass)"),
        ("without_tad", "w/o token-alignable draft (concat fusion, one head)"),
        ("without_both", "w/o both"),
    ],
    "Top-k of the alignment mask (Table 3)": [
        ("top_none", "no mask"),
        ("top_1", "k = 1"),
        ("griffin", "k = 3"),
        ("top_5", "k = 5"),
        ("top_10", "k = 10"),
    ],
    "Passes (Table 4)": [
        ("without_tat", "N = 1"),
        ("passes_2", "N = 2"),
        ("griffin", "N = 3"),
        ("passes_4", "N = 4"),
        ("passes_5", "N = 5"),
    ],
    "What guides the fusion (Table 5)": [
        ("griffin", "token embedding"),
        ("fusion_by_feature", "feature"),
        ("fusion_by_fused", "fused vector"),
        ("without_fusion", "no fusion module (concat, two heads)"),
    ],
    "Token-enhanced head (Table 8)": [("griffin", "two heads"), ("without_dual_head", "one head")],
    "Reading of the mask (ours)": [
        ("griffin", "released indexing"),
        ("mask_consumed", "newest hit about the token that is read"),
        ("mask_paper", "Eq. 3 and Eq. 2 as written"),
    ],
}
TEMPERATURES = ("0.0", "1.0")
PAPER_GAINS = {"hass": "about 8 %", "eagle2": "about 20 %"}  # of GRIFFIN in tau, on its seven targets

Runs = dict[str, dict[int, dict]]  # row -> seed -> run


def main(args: argparse.Namespace) -> None:
    runs = read_runs(args.runs_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "results.json").write_text(json.dumps(runs, indent=None) + "\n", encoding="utf-8")
    (args.output_dir / "tables.md").write_text(markdown(runs), encoding="utf-8")
    plot(runs, args.output_dir / "tau.png")
    print(json.dumps({row: {t: tau(runs, row, t)[0] for t in TEMPERATURES} for row in runs}))


def read_runs(runs_dir: Path) -> Runs:
    runs: Runs = {}
    for path in sorted(runs_dir.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["row"], {})[run["seed"]] = run
    if not runs:
        raise SystemExit(f"{runs_dir} holds no results; run ablations.py first.")
    return runs


def pooled(runs: Runs, row: str, temperature: str, seeds: set[int]) -> tuple[list[int], list[int]]:
    """Tokens and cycles of every prompt, summed over seeds."""
    parts = [runs[row][seed]["acceptance"][temperature] for seed in sorted(seeds)]

    def total(name: str) -> list[int]:
        return [sum(values) for values in zip(*(part[name] for part in parts), strict=True)]

    return total("tokens"), total("cycles")


def tau(runs: Runs, row: str, temperature: str) -> tuple[float, tuple[float, float]]:
    tokens, cycles = pooled(runs, row, temperature, set(runs[row]))
    return sum(tokens) / sum(cycles), bootstrap_interval(tokens, cycles)


def gain(runs: Runs, row: str, base: str, temperature: str) -> tuple[float, tuple[float, float]]:
    """tau of `row` over that of `base`, minus 1."""
    seeds = set(runs[row]) & set(runs[base])
    ours, theirs = pooled(runs, row, temperature, seeds), pooled(runs, base, temperature, seeds)
    value = sum(ours[0]) / sum(ours[1]) * sum(theirs[1]) / sum(theirs[0]) - 1
    return value, paired_ratio_interval(*ours, *theirs)


def markdown(runs: Runs) -> str:
    lines = []
    for title, rows in TABLES.items():
        present = [(row, label) for row, label in rows if row in runs]
        if len(present) < 2:
            continue
        lines += [f"### {title}", "", "| | seeds | parameters | tau, T=0 | tau, T=1 | GRIFFIN's gain, T=0 | T=1 |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [table_line(runs, row, label) for row, label in present]
        lines.append("")
    return "\n".join([*lines, *misalignment_table(runs)]) + "\n"


def table_line(runs: Runs, row: str, label: str) -> str:
    cells = []
    for temperature in TEMPERATURES:
        value, (low, high) = tau(runs, row, temperature)
        cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
    for temperature in TEMPERATURES:
        if row == "griffin" or "griffin" not in runs:
            cells.append("")
            continue
        value, (low, high) = gain(runs, "griffin", row, temperature)
        cells.append(f"{value:+.1%} [{low:+.1%}, {high:+.1%}]")
    if row in PAPER_GAINS and cells[2]:
        cells[2] += f" (paper: {PAPER_GAINS[row]})"
    num_parameters = next(iter(runs[row].values()))["num_parameters"]
    return f"| {label} | {len(runs[row])} | {num_parameters / 1e6:.2f}M | " + " | ".join(cells) + " |"


def misalignment_table(runs: Runs) -> list[str]:
    """Share of validation positions whose token is not among the draft's three best, pass by pass (Fig. 1c)."""
    rows = [(row, label) for row, label in TABLES["Methods (Table 1)"] if row in runs]
    lines = ["### Misaligned tokens by pass (Fig. 1c)", "", "| | 1 | 2 | 3 | 4 | 5 |", "|---|---|---|---|---|---|"]
    for row, label in rows:
        metrics = [run["metrics"] for run in runs[row].values()]
        shares = [1 - sum(m[f"eval_pass_{n}/hit_rate"] for m in metrics) / len(metrics) for n in range(1, 6)]
        lines.append(f"| {label} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return lines


def plot(runs: Runs, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    titles = [title for title, rows in TABLES.items() if sum(row in runs for row, _ in rows) > 1]
    figure, axes = pyplot.subplots(len(titles), 2, figsize=(11, 1.9 * len(titles)), squeeze=False)
    for title, pair in zip(titles, axes, strict=True):
        rows = [(row, label) for row, label in TABLES[title] if row in runs]
        for temperature, axis in zip(TEMPERATURES, pair, strict=True):
            values = [tau(runs, row, temperature) for row, _ in rows]
            means = [value for value, _ in values]
            errors = [[v - low for v, (low, _) in values], [high - v for v, (_, high) in values]]
            axis.barh([label for _, label in rows], means, xerr=errors, color="tab:blue", ecolor="gray")
            axis.invert_yaxis()
            axis.set_xlim(left=1)
            axis.set_title(f"{title}, T={float(temperature):g}", fontsize=9)
            axis.tick_params(labelsize=8)
        pair[1].set_yticklabels([])
    axes[-1][0].set_xlabel("tau (tokens per cycle, 95 % interval over prompts)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/mini_pair/ablations"))
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "ablations")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
