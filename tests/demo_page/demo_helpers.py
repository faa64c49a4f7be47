"""The mini pair as the page holds it."""

from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from transformers_griffin.demo_page import Pair


MINI = Path(__file__).parents[2] / "examples" / "mini"


def mini_pair() -> Pair:
    target = AutoModelForCausalLM.from_pretrained(MINI / "target", dtype=torch.float32).eval()
    draft = AutoModel.from_pretrained(MINI / "draft", dtype=torch.float32).eval().bind(target)
    return Pair(target, draft, AutoTokenizer.from_pretrained(MINI / "target"))
