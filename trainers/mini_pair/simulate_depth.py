"""
Would it pay if every cycle chose its own depth? Ways to choose, simulated on answers that are known.

    python trainers/mini_pair/simulate_depth.py --answers runs/mini_pair/shipped_ablations/answers-T0.json
    python trainers/mini_pair/simulate_depth.py --answers answers-T0.json --compiled --max_prompts 4 --depth 3

The answers are those that `ablations.py` writes, of the pair that ships. Acceptance lengths are exact
(`evaluation/tree_acceptance.py`), costs are shares of a cycle in plain steps: those of `fixed` and, compiled, of
`fixed_compiled` in examples/mini/bench_sampled (T=0). What a token costs, and how much more a first pass than others,
is taken from examples/mini/bench_methods, without compilation.
Parameters are chosen on one half of the prompts and judged on the other, both ways round.

Measured: docs/evaluation.md, "No deeper than it pays?".
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from transformers_griffin.decoding import adaptive_depth
from transformers_griffin.decoding.candidate_generator import GriffinCandidateGenerator
from transformers_griffin.decoding.draft_tree import pool_size
from transformers_griffin.decoding.tree_settings import tokens_at_depth
from transformers_griffin.evaluation import know_answers, paired_ratio_interval
from transformers_griffin.evaluation.tree_acceptance import PathRanks, rank_paths


MINI = Path(__file__).parents[2] / "examples" / "mini"
NUM_TOKENS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)

Confidence = list[list[float]]  # by root and level: the beam's summed probability
# (confidence after every level, (levels, tokens emitted) of the cycles before) -> levels
Choice = Callable[[list[float], list[tuple[int, int]]], int]


@dataclass(frozen=True)
class Costs:
    """Plain steps: verifying no token and each, the first pass, further passes two wide, the rest."""

    verify: float
    token: float
    first_pass: float
    further_pass: float
    rest: float

    def of_cycle(self, num_tokens: int, depth: int) -> float:
        passes = self.first_pass + self.further_pass * (depth - 1)
        return self.verify + self.token * num_tokens + passes + self.rest


EAGER = Costs(1.29, 0.033, 0.23, 0.174, 0.153)
COMPILED = Costs(0.971, 0.033, 0.122, 0.093, 0.168)


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ranks, confidence = draft_everywhere(args)
    num_prompts = len(confidence)
    cost_of = (COMPILED if args.compiled else EAGER).of_cycle
    level_cost = (cost_of(14, 6) - cost_of(2, 1)) / 5
    level_cost /= cost_of(2, 1) - level_cost
    print(f"A level costs {level_cost:.3f} cycles without any.")
    ways = ways_to_choose(args.depth, level_cost)
    halves = [range(0, num_prompts, 2), range(1, num_prompts, 2)]
    costs: dict[str, list[float]] = {name: [0.0] * num_prompts for name in (*ways, "oracle")}
    for chosen_on, judged_on in (halves, halves[::-1]):
        sizes = {depth: best_size(ranks, depth, chosen_on, cost_of) for depth in range(1, args.depth + 1)}
        cost = {depth: cost_of(size, depth) for depth, size in sizes.items()}
        emitted = [
            {d: (1 + (rows[:, d - 1, :d] < size).sum(dim=1)).tolist() for d, size in sizes.items()}
            for rows in ranks.ranks
        ]
        for name, choices in ways.items():
            best = min(choices, key=lambda way: sum(play(emitted[i], confidence[i], cost, way) for i in chosen_on))
            for i in judged_on:
                costs[name][i] = play(emitted[i], confidence[i], cost, best)
        for i in judged_on:
            costs["oracle"][i] = cheapest(emitted[i], cost)
    tokens = [len(rows) for rows in confidence]
    if args.constants:
        print_constants(ranks, confidence, cost_of, level_cost)
    for name, spent in costs.items():
        low, high = paired_ratio_interval(tokens, spent, tokens, costs["fixed"])
        gain = sum(costs["fixed"]) / sum(spent) - 1
        print(f"{name:<12} SR {sum(tokens) / sum(spent):.3f} {gain:+.1%} [{low:+.1%}, {high:+.1%}]")


def print_constants(
    ranks: PathRanks, confidence: list[Confidence], cost_of: Callable[[int, int], float], level_cost: float
) -> None:
    """SR of the shipped tree with `draft_level_cost`, by the constants of `decoding/adaptive_depth.py`."""
    sizes = {depth: tokens_at_depth(14, 6, 2, depth) for depth in (1, 2, 3, 6)}
    cost = {depth: cost_of(size, depth) for depth, size in sizes.items()}
    emitted = [
        {d: (1 + (rows[:, d - 1, :d] < size).sum(dim=1)).tolist() for d, size in sizes.items()} for rows in ranks.ranks
    ]
    answers = list(zip(emitted, confidence, strict=True))
    num_tokens = sum(map(len, confidence))
    for prior, weight, decay in itertools.product((0.5, 0.6, 0.7), (1.0, 2.0), (0.6, 0.7, 0.8)):
        with patch.multiple(adaptive_depth, PRIOR=prior, WEIGHT=weight, DECAY=decay):
            spent = sum(play(e, c, cost, adaptive(6, level_cost)) for e, c in answers)
        print(f"prior {prior} counts {weight:g} levels, decay {decay}: SR {num_tokens / spent:.3f}")
    for depth in sizes:
        fixed = sum(play(e, c, cost, lambda _, __, d=depth: d) for e, c in answers)  # type: ignore[misc]
        print(f"{depth} levels in every cycle: SR {num_tokens / fixed:.3f}")


def draft_everywhere(args: argparse.Namespace) -> tuple[PathRanks, list[Confidence]]:
    """Ranks of the answers' paths, and the confidence, of every answer."""
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype=torch.float32).eval()
    draft = AutoModel.from_pretrained(MINI / "draft", dtype=torch.float32).eval().bind(target)
    beams: Confidence = []
    grow = GriffinCandidateGenerator.grow

    def record(*inputs):
        pool = grow(*inputs)
        levels = pool.scores.split([2] + [4] * (args.depth - 1), dim=1)
        beams.extend(torch.stack([level.topk(2).values.exp().sum(dim=1) for level in levels], dim=1).tolist())
        return pool

    with patch.object(GriffinCandidateGenerator, "grow", record):
        texts = json.loads(args.answers.read_text())[: args.max_prompts]
        known = [know_answers(target, [torch.tensor(tokens)], [n]) for n, *tokens in texts if len(tokens) > n + 1]
        ranks = rank_paths(draft, known, args.depth, top_k=2)
    each = iter(beams)
    return ranks, [list(itertools.islice(each, len(rows))) for rows in ranks.ranks]


def best_size(ranks: PathRanks, depth: int, prompts: range, cost_of: Callable[[int, int], float]) -> int:
    """The number of tokens with which trees of this depth are fastest."""
    sizes = [size for size in NUM_TOKENS if depth <= size <= pool_size(depth, 2)]
    cycles = {size: [len(lengths) for lengths in ranks.acceptance_lengths(size, depth)] for size in sizes}
    return min(sizes, key=lambda size: cost_of(size, depth) * sum(cycles[size][i] for i in prompts))


def ways_to_choose(depth: int, level_cost: float) -> dict[str, list[Choice]]:
    """By what is looked at: nothing, the draft's confidence after every or one level, the cycles before."""
    depths, levels = range(1, depth + 1), range(1, depth)
    return {
        "fixed": [lambda _, __, d=d: d for d in depths],
        "every_level": [unless_below(t, levels, depth) for t in THRESHOLDS],
        "one_level": [unless_below(t, [i], most) for t in THRESHOLDS for i in levels for most in depths[i:]],
        "heuristic": [heuristic(up, most) for up in (1, 2) for most in depths],
        "adaptive": [adaptive(most, level_cost) for most in depths],
    }


def unless_below(threshold: float, checked: Iterable[int], most: int) -> Choice:
    """Stops after the first checked level at which the beam's summed probability is below the threshold."""
    return lambda confidence, _: next((level for level in checked if confidence[level - 1] < threshold), most)


def heuristic(up: int, most: int) -> Choice:
    """transformers' schedule of that name: deeper when all levels were accepted, else one level less."""

    def choose(_: list[float], past: list[tuple[int, int]]) -> int:
        depth, emitted = past[-1] if past else (min(5, most), 0)
        return min(max(depth + (up if emitted == depth + 1 else -1), 1), most)

    return choose


def adaptive(most: int, level_cost: float) -> Choice:
    """What `draft_level_cost` does."""

    def choose(_: list[float], past: list[tuple[int, int]]) -> int:
        chooser = adaptive_depth.AdaptiveDepth(most, level_cost, num_rows=1)
        for depth, emitted in past[-32:]:  # older cycles count for nothing
            chooser.learn(depth, [emitted])
        return chooser.choose()

    return choose


def play(emitted: dict[int, list[int]], confidence: Confidence, cost: dict[int, float], choose: Choice) -> float:
    """Plain steps that an answer takes."""
    root, total, past = 0, 0.0, []
    while root < len(confidence):
        depth = choose(confidence[root], past)
        past.append((depth, emitted[depth][root]))
        total, root = total + cost[depth], root + past[-1][1]
    return total


def cheapest(emitted: dict[int, list[int]], cost: dict[int, float]) -> float:
    """The same, if every cycle knew what each depth will bring."""
    steps = [0.0] * (len(emitted[1]) + max(cost) + 1)
    for root in reversed(range(len(emitted[1]))):
        steps[root] = min(cost[d] + steps[root + emitted[d][root]] for d in cost)
    return steps[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--max_prompts", type=int)
    parser.add_argument("--depth", type=int, default=8, help="levels of the deepest trees; all are two wide")
    parser.add_argument("--constants", action="store_true", help="also vary how rates are estimated (tree 14/6/2)")
    parser.add_argument("--compiled", action="store_true", help="costs of compiled cycles")
    main(parser.parse_args())
