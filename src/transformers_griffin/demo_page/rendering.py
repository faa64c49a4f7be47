"""
The page's HTML: two answers side by side, what they have in common, and the newest tree.

Pure functions from numbers and texts to HTML; everything that a model or a person wrote is escaped.

Next: `page.py`.
"""

import html
from dataclasses import dataclass
from itertools import groupby

from .streaming import Progress


CSS = """\
.answers{display:grid;grid-template-columns:1fr 1fr;gap:16px}
@media (max-width:760px){.answers{grid-template-columns:1fr}}
.card{border:1px solid var(--border-color-primary);border-radius:12px;padding:16px 18px;min-height:230px;
 background:var(--block-background-fill);color:var(--body-text-color)}
.card header{display:flex;justify-content:space-between;align-items:baseline}
.card h3{margin:0;font-size:15px;font-weight:600}
.card .speed{font-size:26px;font-weight:650;font-variant-numeric:tabular-nums}
.card .speed small{font-size:13px;font-weight:400;opacity:.7}
.card .bar{height:5px;border-radius:3px;margin:8px 0 10px;background:var(--border-color-primary)}
.card .bar div{height:100%;border-radius:3px;background:#94a3b8;transition:width .1s}
.card.griffin .bar div{background:#16a34a}
.card .numbers{font-size:13px;opacity:.8;font-variant-numeric:tabular-nums}
.card .text{margin-top:12px;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.65;font-size:15px}
mark{background:#bbf7d0;color:#14532d;border-radius:3px;padding:1px 0;box-decoration-break:clone}
.dark mark{background:#14532d;color:#bbf7d0}
.verdict{margin-top:14px;padding:10px 16px;border-radius:10px;font-size:15px;color:var(--body-text-color);
 background:var(--background-fill-secondary)}
.verdict.same{background:#dcfce7;color:#14532d}
.verdict.wrong{background:#fee2e2;color:#7f1d1d}
.hint{font-size:13px;margin-top:14px;color:var(--body-text-color);opacity:.7}
#answers .html-container,#tree .html-container{padding:0}
#tree{min-height:220px;overflow-x:auto}
footer{display:none!important}
"""
HINT = (
    "Green: guessed by the draft and confirmed by the target. The answers run one after the other, so that each has "
    "the processor for itself; speeds include streaming to this page."
)


@dataclass(frozen=True)
class Verdict:
    """One sentence below the answers."""

    text: str
    kind: str = ""  # same, wrong, or nothing special


def answers_html(plain: Progress, drafted: Progress, verdict: Verdict | None = None) -> str:
    """Both cards, and the verdict when there is one."""
    speeds = [progress.tokens_per_second if progress.tokens else 0.0 for progress in (plain, drafted)]
    fastest = max(speeds) or 1.0
    cards = [
        _card("plain", "Target alone", plain, speeds[0] / fastest),
        _card("griffin", "Target with GRIFFIN draft", drafted, speeds[1] / fastest),
    ]
    below = f'<div class="hint">{HINT}</div>'
    if verdict is not None:
        below = f'<div class="verdict {verdict.kind}">{html.escape(verdict.text)}</div>{below}'
    return f'<div class="answers">{"".join(cards)}</div>{below}'


def compare_answers(plain: Progress, drafted: Progress, is_sampled: bool) -> Verdict:
    """What the two finished answers show."""
    speedup = drafted.tokens_per_second / plain.tokens_per_second
    speed = f"{speedup:.2f} times the speed"
    forwards = f"{count(num_forwards(drafted), 'forward')} of the target instead of {num_forwards(plain)}"
    if is_sampled:
        return Verdict(f"Sampled: one distribution, two draws, so the texts differ. {speed}.")
    if plain.tokens == drafted.tokens:
        return Verdict(f"The same {count(len(plain.tokens), 'token')}, {speed}: {forwards}.", "same")
    first = next(
        (i for i, pair in enumerate(zip(plain.tokens, drafted.tokens, strict=False)) if pair[0] != pair[1]),
        min(len(plain.tokens), len(drafted.tokens)),
    )
    return Verdict(
        f"The answers part at token {first + 1}. In half precision near ties may flip; in float32 this is a bug.",
        "wrong",
    )


def answer_text_html(progress: Progress) -> str:
    """The text, with what the draft guessed marked; a run of guessed tokens is one mark."""
    parts = []
    for is_guessed, pieces in groupby(progress.pieces, key=lambda piece: piece[1]):
        text = html.escape("".join(piece for piece, _ in pieces))
        parts.append(f"<mark>{text}</mark>" if is_guessed else text)
    return "".join(parts)


def num_forwards(progress: Progress) -> int:
    """Forwards of the target: one for each token, or one for the prompt and one for each cycle."""
    cycles = len(progress.acceptance_lengths)
    return cycles + 1 if cycles else len(progress.tokens)


def count(number: int, thing: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _card(kind: str, title: str, progress: Progress, share: float) -> str:
    """One answer; `share` is its speed relative to the faster one."""
    speed, numbers = "–", "&nbsp;"
    if progress.tokens:
        speed = f"{progress.tokens_per_second:.0f}"
        facts = [
            count(len(progress.tokens), "token"),
            count(num_forwards(progress), "forward"),
            f"{progress.wall_seconds:.2f} s",
        ]
        if progress.acceptance_lengths:
            facts.insert(0, f"<b>tau {progress.tau:.2f}</b>")
        numbers = " · ".join(facts)
    return (
        f'<section class="card {kind}"><header><h3>{title}</h3>'
        f'<span class="speed">{speed} <small>tokens/s</small></span></header>'
        f'<div class="bar"><div style="width:{share:.0%}"></div></div><div class="numbers">{numbers}</div>'
        f'<div class="text">{answer_text_html(progress)}</div></section>'
    )


__all__ = ["CSS", "Verdict", "answers_html", "compare_answers"]
