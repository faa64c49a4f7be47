"""
Measurements in, a table's rows out; every figure is defined in `metrics.py`, every interval in `intervals.py`.

A prompt counts once in totals and intervals, and so does a batch of them: its turns are added up, and of its repeats
the medians are taken. Only prompts that all methods of a setting answered count, so that an interrupted run compares
the same prompts, too.

SR is refused where it would compare different work: if greedy float32 answers of a method differ from those of plain
decoding (all methods are lossless), it has no SR but a note. Half precision may round a tie to the other side when
tokens are verified together; there SR is reported, with the number of equal answers beside it.

Next: `report.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

from .intervals import bootstrap_interval, paired_ratio_interval
from .methods import PLAIN, PLAIN_KINDS
from .metrics import acceptance_by_depth, repeated_ngram_share
from .results import ALL_DOMAINS, Estimate, Measurement, Method, Setting, Summary


Answers = dict[tuple[str, str, int], list[Measurement]]  # (domain, prompt, turn) -> repeats


@dataclass(frozen=True)
class PromptTotals:
    """What one prompt, with all its turns, took; medians over repeats."""

    num_tokens: float
    seconds: float


def summarize(
    measurements: Iterable[Measurement],
    methods: Sequence[Method],
    settings: Sequence[Setting],
    allow_differences: bool = False,
    not_run: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Summary]:
    """
    One row for every setting, method and domain, and for all domains together.

    Args:
        measurements (`Iterable[Measurement]`): in any order.
        methods (`Sequence[Method]`): the rows' order.
        settings (`Sequence[Setting]`): likewise.
        allow_differences (`bool`, defaults to `False`): SR also where it would be refused.
        not_run (`Mapping`, *optional*): setting -> method -> why it was left out.
    """
    by_setting: dict[str, dict[str, Answers]] = {}
    for measurement in measurements:
        answers = by_setting.setdefault(measurement.setting, {}).setdefault(measurement.method, {})
        answers.setdefault((measurement.domain, measurement.prompt, measurement.turn), []).append(measurement)
    rows: list[Summary] = []
    for setting in settings:
        table = _SettingTable(setting, methods, by_setting.get(setting.name, {}), allow_differences)
        reasons = (not_run or {}).get(setting.name, {})
        rows += [row for method in methods for row in table.rows(method, reasons.get(method.name))]
    return rows


class _SettingTable:
    """The rows of one setting."""

    def __init__(
        self, setting: Setting, methods: Sequence[Method], answers: dict[str, Answers], allow_differences: bool
    ):
        self.setting, self.allow_differences = setting, allow_differences
        common = _common_prompts(list(answers.values()))
        self.answers = {
            name: {key: repeats for key, repeats in of_method.items() if key[:2] in common}
            for name, of_method in answers.items()
        }
        self.domains = list(dict.fromkeys(key[0] for key in self.answers.get(PLAIN, {})))
        self.best_plain = self._find_best_plain(methods)

    def rows(self, method: Method, reason: str | None) -> list[Summary]:
        """One for each domain, and the one for all."""
        if not self.answers.get(method.name):
            note = f"not measured: {reason}" if reason else "not measured"
            return [Summary(self.setting.name, method.name, domain, 0, 0, 0, note=note) for domain in self._domains()]
        return [self._row(method, domain) for domain in self._domains()]

    def _domains(self) -> list[str]:
        return [*self.domains, ALL_DOMAINS]

    def _row(self, method: Method, domain: str) -> Summary:
        answers = self._of(method.name, domain)
        measured = [m for repeats in answers.values() for m in repeats]
        totals = _totals(answers)
        refusal = self._refusal(method.name)
        over_eager = None if refusal else self._speedup(method.name, PLAIN, domain)
        lengths = [row for m in measured for row in m.acceptance_lengths or []]
        tau = _tau(answers)
        draft_share, verify_share = _shares(measured)
        return Summary(
            setting=self.setting.name,
            method=method.name,
            domain=domain,
            num_prompts=sum(len(repeats[0].new_tokens) for (*_, turn), repeats in answers.items() if turn == 0),
            num_answers=sum(len(m.new_tokens) for m in measured),
            num_tokens=sum(len(row) for m in measured for row in m.new_tokens),
            tokens_per_second=_ratio([t.num_tokens for t in totals], [t.seconds for t in totals]),
            tau=tau,
            speedup_over_eager=over_eager,
            speedup_over_best_plain=None if refusal else self._speedup(method.name, self.best_plain, domain),
            cycle_cost=tau.value / over_eager.value if tau and over_eager else None,
            first_token_seconds=_median([m.first_token_seconds for m in measured]),
            acceptance_by_depth=_by_depth(lengths, method),
            misaligned_rates=_misaligned_rates(measured),
            draft_share=draft_share,
            verify_share=verify_share,
            peak_memory_bytes=max((m.peak_memory_bytes for m in measured if m.peak_memory_bytes), default=None),
            num_identical=self._num_identical(method.name, domain) if self.setting.is_greedy else None,
            repeated_4grams=_repeated_4grams(measured),
            note=refusal,
        )

    def _of(self, name: str, domain: str) -> Answers:
        return {k: v for k, v in self.answers[name].items() if domain in (ALL_DOMAINS, k[0])}

    def _speedup(self, name: str, baseline: str, domain: str) -> Estimate:
        """Tokens per second over those of `baseline`, both resampled with the same prompts."""
        a, b = _totals(self._of(name, domain)), _totals(self._of(baseline, domain))
        tokens, seconds = [t.num_tokens for t in a], [t.seconds for t in a]
        base_tokens, base_seconds = [t.num_tokens for t in b], [t.seconds for t in b]
        value = sum(tokens) / sum(seconds) / (sum(base_tokens) / sum(base_seconds))
        low, high = paired_ratio_interval(tokens, seconds, base_tokens, base_seconds)
        return Estimate(value, 1 + low, 1 + high)

    def _num_identical(self, name: str, domain: str) -> int:
        """Answers that are those of plain decoding, token for token."""
        plain = {m.key[2:]: m.new_tokens for repeats in self._of(PLAIN, domain).values() for m in repeats}
        measured = [m for repeats in self._of(name, domain).values() for m in repeats]
        pairs = [pair for m in measured for pair in zip(m.new_tokens, plain[m.key[2:]], strict=True)]
        return sum(answer == plain_answer for answer, plain_answer in pairs)

    def _refusal(self, name: str) -> str | None:
        """Why the method has no SR."""
        if not self.setting.is_greedy or self.setting.dtype != "float32" or self.allow_differences:
            return None
        count = sum(len(m.new_tokens) for repeats in self.answers[name].values() for m in repeats)
        num_different = count - self._num_identical(name, ALL_DOMAINS)
        if num_different == 0:
            return None
        return (
            f"no SR: {num_different} of {count} greedy float32 answers differ from plain decoding's "
            "(--allow-differences reports it nevertheless)"
        )

    def _find_best_plain(self, methods: Sequence[Method]) -> str:
        """
        The fastest plain mode over all domains. It is plain whatever its ties do: leaving it out where its arithmetic
        differs somewhere would flatter all others.
        """
        speeds = {}
        for method in methods:
            if method.kind in PLAIN_KINDS and self.answers.get(method.name):
                totals = _totals(self.answers[method.name])
                speeds[method.name] = sum(t.num_tokens for t in totals) / sum(t.seconds for t in totals)
        return max(speeds, key=lambda name: speeds[name], default=PLAIN)


def _common_prompts(methods: list[Answers]) -> set[tuple[str, str]]:
    """Prompts (domain, name) of which all methods have answered the same turns and repeats."""
    done = [{m.key[2:] for repeats in answers.values() for m in repeats} for answers in methods]
    every, some = (op(*done) if done else set() for op in (set.intersection, set.union))
    return {key[:2] for key in every} - {key[:2] for key in some - every}


def _totals(answers: Answers) -> list[PromptTotals]:
    """Of every prompt, in an order that is the same for all methods."""
    totals: dict[tuple[str, str], PromptTotals] = {}
    for (domain, prompt, _), repeats in sorted(answers.items()):
        before = totals.get((domain, prompt), PromptTotals(0, 0))
        totals[domain, prompt] = PromptTotals(
            before.num_tokens + median(sum(map(len, m.new_tokens)) for m in repeats),
            before.seconds + median(m.wall_seconds for m in repeats),
        )
    return list(totals.values())


def _ratio(numerators: list[float], denominators: list[float]) -> Estimate | None:
    """The ratio of sums with its interval; None without anything to divide by."""
    if sum(denominators) == 0:
        return None
    return Estimate(sum(numerators) / sum(denominators), *bootstrap_interval(numerators, denominators))


def _tau(answers: Answers) -> Estimate | None:
    """Tokens over cycles; None for methods without cycles."""
    cycles: dict[tuple[str, str], list[int]] = {}
    for (domain, prompt, _), repeats in sorted(answers.items()):
        rows = [row for m in repeats for row in m.acceptance_lengths or []]
        cycles.setdefault((domain, prompt), []).extend(length for row in rows for length in row)
    return _ratio([sum(lengths) for lengths in cycles.values()], [len(lengths) for lengths in cycles.values()])


def _by_depth(lengths: list[list[int]], method: Method) -> list[float] | None:
    """Down to the depth of the draft's tree, or for other methods to the deepest that occurred."""
    if not any(lengths):
        return None
    deepest = max(map(max, filter(None, lengths))) - 1
    return acceptance_by_depth(lengths, method.tree["draft_tree_depth"] if method.tree else deepest) or None


def _shares(measured: list[Measurement]) -> tuple[float | None, float | None]:
    """What drafting and verifying take of the time after the first token."""
    timed = [m for m in measured if None not in (m.draft_seconds, m.verify_seconds, m.first_token_seconds)]
    decoding = sum(m.wall_seconds - (m.first_token_seconds or 0) for m in timed)
    if decoding <= 0:
        return None, None
    return sum(m.draft_seconds or 0 for m in timed) / decoding, sum(m.verify_seconds or 0 for m in timed) / decoding


def _misaligned_rates(measured: list[Measurement]) -> list[float] | None:
    """By pass, misaligned chains over all chains."""
    columns = list(zip_longest(*(m.misaligned_chains or [] for m in measured), fillvalue=(0, 0)))
    return [sum(c[0] for c in column) / sum(c[1] for c in column) for column in columns] or None


def _repeated_4grams(measured: list[Measurement]) -> float:
    rows = [row for m in measured for row in m.new_tokens]
    return sum(map(repeated_ngram_share, rows)) / len(rows)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


__all__ = ["summarize"]
