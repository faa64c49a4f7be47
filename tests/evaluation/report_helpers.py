"""Benchmark results that are short enough to read, for tests of reports."""

from html.parser import HTMLParser

from transformers_griffin.evaluation.results import BenchmarkResults, Estimate, Method, Setting, Summary


HOSTILE = "a|b <i>*c*</i> & $d$ [e](http://f)"  # a name that Markdown, HTML and matplotlib could all misread
TREE = {"num_assistant_tokens": 10, "draft_tree_depth": 5, "draft_tree_top_k": 2}
GREEDY = Setting("float32 T=0", "float32", {"do_sample": False})
SAMPLED = Setting("float32 T=1", "float32", {"do_sample": True, "temperature": 1.0}, batch_size=2)


def around(value: float) -> Estimate:
    return Estimate(value, value - 0.25, value + 0.5)


def plain_row(setting: str, domain: str, num_prompts: int) -> Summary:
    return Summary(
        setting, "plain", domain, num_prompts, num_prompts, 100 * num_prompts, around(50.0), None, around(1.0)
    )


def draft_row(setting: str, method: str, domain: str, num_prompts: int, speedup: float, tau: float) -> Summary:
    return Summary(
        setting,
        method,
        domain,
        num_prompts,
        num_prompts,
        100 * num_prompts,
        tokens_per_second=around(50 * speedup),
        tau=around(tau),
        speedup_over_eager=around(speedup),
        speedup_over_best_plain=around(speedup),
        cycle_cost=tau / speedup,
        first_token_seconds=0.0215,
        acceptance_by_depth=[0.75, 0.5],
        misaligned_rates=[0.25, 0.5, 0.625],
        draft_share=0.25,
        verify_share=0.625,
        peak_memory_bytes=123_456_789,
        num_identical=num_prompts if setting == GREEDY.name else None,
        repeated_4grams=0.125,
    )


def small_results() -> BenchmarkResults:
    """Three methods in two domains: the second draft is fastest when greedy, nothing is when sampling."""
    summaries = [
        plain_row(s.name, d, n) for s in (GREEDY, SAMPLED) for d, n in (("gsm8k", 2), ("my <set>", 1), ("all", 3))
    ]
    summaries += [
        draft_row(GREEDY.name, "hass", "gsm8k", 2, 1.5, 3.0),
        draft_row(GREEDY.name, "hass", "my <set>", 1, 1.25, 2.5),
        draft_row(GREEDY.name, "hass", "all", 3, 1.4375, 2.875),
        draft_row(GREEDY.name, HOSTILE, "gsm8k", 2, 1.504, 4.0),
        draft_row(GREEDY.name, HOSTILE, "my <set>", 1, 2.0, 4.5),
        draft_row(GREEDY.name, HOSTILE, "all", 3, 1.625, 4.125),
        draft_row(SAMPLED.name, "hass", "gsm8k", 2, 0.5, 1.5),
        draft_row(SAMPLED.name, "hass", "my <set>", 1, 0.75, 1.75),
        draft_row(SAMPLED.name, "hass", "all", 3, 0.6875, 1.6875),
        *(
            Summary(SAMPLED.name, HOSTILE, domain, 0, 0, 0, note="not measured: one | row <only>")
            for domain in ("gsm8k", "my <set>", "all")
        ),
    ]
    return BenchmarkResults(
        title="A & B <small>",
        target="some/target",
        methods=[
            Method("plain", "plain", "generate(), dynamic cache"),
            Method("hass", "draft", "concat fusion", 623_104, TREE),
            Method(HOSTILE, "draft", "token-guided | fusion", 1_120_000, TREE),
        ],
        settings=[GREEDY, SAMPLED],
        summaries=summaries,
        provenance={
            "versions": {"torch": "2.13.0"},
            "device": "CPU, 2 cores",
            "commit": None,
            "date": "2026-11-22",
            "arguments": {"draft": ["hass=a", "griffin=b"], "prompt": "<b>"},
        },
        is_complete=False,
    )


def empty_results() -> BenchmarkResults:
    """A method was to run, and nothing was measured."""
    summaries = [Summary(GREEDY.name, "plain", "all", 0, 0, 0)]
    return BenchmarkResults("nothing", "t", [Method("plain", "plain", "x")], [GREEDY], summaries, provenance={})


def single_results() -> BenchmarkResults:
    """One draft in one domain, which is all of them."""
    summaries = [
        row
        for domain in ("gsm8k", "all")
        for row in (plain_row(GREEDY.name, domain, 2), draft_row(GREEDY.name, "hass", domain, 2, 1.5, 3.0))
    ]
    methods = [Method("plain", "plain", "x"), Method("hass", "draft", "y", 1, TREE)]
    return BenchmarkResults("one", "t", methods, [GREEDY], summaries, provenance={"device": "CPU"})


def large_results() -> BenchmarkResults:
    """Eight methods, four settings, three domains."""
    settings = [
        Setting(f"{dtype} T={t}", dtype, {"do_sample": t > 0}) for dtype in ("float32", "bfloat16") for t in (0, 1)
    ]
    names = [f"draft{number}" for number in range(7)]
    summaries = [
        row
        for setting in settings
        for domain in ("mt_bench", "humaneval", "gsm8k", "all")
        for row in (
            plain_row(setting.name, domain, 4),
            *(draft_row(setting.name, name, domain, 4, 1 + 0.25 * i, 2 + 0.5 * i) for i, name in enumerate(names)),
        )
    ]
    methods = [Method("plain", "plain", "x"), *(Method(name, "draft", "y", 1, TREE) for name in names)]
    return BenchmarkResults("large", "t", methods, settings, summaries, provenance={"device": "CPU"})


class PageReader(HTMLParser):
    """Reads a page; raises if its tags are not balanced. Collects text, tags, and what it would load."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self.feed(page)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes what is not open")

    def handle_data(self, data):
        self.text += data
