"""
The Gradio page: a prompt, the tree's settings, two answers and a tree.

It loads nothing from elsewhere: fonts are the system's, and Gradio's analytics are off.

Next: `cli/demo.py`.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch

from ..decoding.tree_settings import MAX_DEPTH, MAX_NODES, MAX_TOP_K
from ..evaluation import draw_tree
from ..evaluation.prompts import encode_chat
from .pair import Pair, TreeSettings
from .rendering import CSS, Verdict, answers_html, compare_answers
from .streaming import Progress, stream_answer


EXAMPLES = (
    "A train travels 60 miles in 2 hours. How fast is it?",
    "Write a Python function that returns the largest number of a list.",
    "What are three ways to save water at home?",
)


def answer_both(
    pair: Pair,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    num_draft_tokens: int,
    depth: int,
    width: int,
) -> Iterator[tuple[str, str]]:
    """
    Answers a prompt without and then with the draft.

    Yields:
        HTML of the answers and of the newest tree, whenever there is something new. Settings that form no tree, and
        what `generate()` refuses, are said there.
    """
    plain, drafted = Progress(), Progress()
    tree = TreeSettings(int(num_draft_tokens), int(depth), int(width))
    settings: dict[str, Any] = {"max_new_tokens": int(max_new_tokens), "do_sample": temperature > 0}
    if temperature > 0:
        settings["temperature"] = float(temperature)
    try:
        if not prompt.strip():
            raise ValueError("The prompt is empty. Write one, or click an example.")
        tree.check(pair.draft)
        input_ids = encode(pair, prompt)
        for plain in stream_answer(pair, input_ids, **settings):
            yield answers_html(plain, drafted), ""
        for drafted in stream_answer(pair, input_ids, tree, **settings):
            yield answers_html(plain, drafted), _tree_html(pair, drafted)
    except ValueError as error:
        yield answers_html(plain, drafted, Verdict(str(error), "wrong")), ""
    else:
        verdict = compare_answers(plain, drafted, is_sampled=temperature > 0)
        yield answers_html(plain, drafted, verdict), _tree_html(pair, drafted)


def build_page(pair: Pair) -> gr.Blocks:
    """
    The page for one pair; `launch_page` starts it.

    Both answers come from one event, and Gradio runs one such event at a time: several visitors queue.
    """
    own = TreeSettings.of(pair.draft)
    highest_width = min(MAX_TOP_K, pair.draft.config.proposal_vocab_size)
    with gr.Blocks(title="GRIFFIN: the same tokens, sooner", analytics_enabled=False) as page:
        gr.Markdown(_introduction(pair))
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=3, scale=4, elem_id="prompt")
            with gr.Column(scale=1, min_width=140):
                answer = gr.Button("Answer", variant="primary", elem_id="answer")
                stop = gr.Button("Stop")
        gr.Examples([[example] for example in EXAMPLES], prompt, label="Examples")
        with gr.Accordion("Settings", open=True):
            with gr.Row():
                num_draft_tokens = gr.Slider(
                    1,
                    MAX_NODES - 1,
                    own.num_draft_tokens,
                    step=1,
                    label="Drafted tokens per cycle, at most",
                    elem_id="nodes",
                )
                depth = gr.Slider(
                    1, MAX_DEPTH, own.depth, step=1, label="Levels of the tree, at most", elem_id="depth"
                )
                width = gr.Slider(1, highest_width, own.width, step=1, label="Width of a level", elem_id="width")
            with gr.Row():
                max_new_tokens = gr.Slider(16, 512, 128, step=16, label="New tokens at most")
                temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: greedy)")
        answers = gr.HTML(answers_html(Progress(), Progress()), elem_id="answers")
        gr.Markdown("### The newest tree")
        tree = gr.HTML(elem_id="tree")

        settings = [prompt, max_new_tokens, temperature, num_draft_tokens, depth, width]
        running = gr.on(
            [answer.click, prompt.submit],
            lambda *values: (yield from answer_both(pair, *values)),
            settings,
            [answers, tree],
            concurrency_limit=1,
            show_progress="hidden",
        )
        stop.click(None, cancels=[running])
    return page


def launch_page(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **launch_kwargs: Any) -> Any:
    """
    Starts the page's server.

    Args:
        port (`int`, *optional*): Gradio takes the first free one from 7860 on by default.
        launch_kwargs: further arguments of `gradio.Blocks.launch`.
    """
    theme = gr.themes.Base(
        primary_hue="green",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return page.launch(
        server_name=host, server_port=port, theme=theme, css=CSS, ssr_mode=False, share=False, **launch_kwargs
    )


def warm_up(pair: Pair) -> None:
    """Answers in both ways once: the first answer of a process is slower than all others."""
    for tree in (None, TreeSettings.of(pair.draft)):
        for _ in stream_answer(pair, encode(pair, "Hello!"), tree, max_new_tokens=16, do_sample=False):
            pass


def encode(pair: Pair, prompt: str) -> torch.Tensor:
    """`prompt` as a `torch.LongTensor` of shape `(1, length)`, in the chat template if there is one."""
    return torch.tensor([encode_chat(pair.tokenizer, [prompt])], device=pair.target.device)


def _introduction(pair: Pair) -> str:
    target, draft = (f"{model.num_parameters() / 1e6:,.1f}M parameters" for model in (pair.target, pair.draft))
    return (
        "# GRIFFIN: the same tokens, sooner\n"
        f"A draft of {draft} guesses a tree of next tokens. The target, of {target}, checks the whole tree with one "
        "forward and keeps what it would have said itself."
    )


def _tree_html(pair: Pair, drafted: Progress) -> str:
    return "" if drafted.tree is None else draw_tree(drafted.tree, pair.tokenizer)


__all__ = ["answer_both", "build_page", "launch_page", "warm_up"]
