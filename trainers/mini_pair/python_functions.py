"""
Builds "complete this function" conversations from Python sources that everybody has: signature + docstring -> body.

Sources and licences: CPython's standard library (PSF-2.0) and, where installed, the packages of `PACKAGES`
(BSD-3-Clause, Apache-2.0 or MIT). Rows that share a function name or a run of eight words with the HumanEval prompts
in `evaluation/prompts_data/humaneval.jsonl` are dropped.
"""

import ast
import importlib.util
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from transformers_griffin.evaluation.prompts import PROMPTS_DATA


PACKAGES = {
    "numpy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "mpmath": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "datasets": "Apache-2.0",
    "accelerate": "Apache-2.0",
    "huggingface_hub": "Apache-2.0",
    "rich": "MIT",
}
HUMANEVAL = PROMPTS_DATA / "humaneval.jsonl"
REQUEST = "Complete the code I provided.\n\n"  # the wording of the released HumanEval prompts
MAX_PROMPT_CHARS, MIN_BODY_CHARS, MAX_BODY_CHARS = 1200, 30, 900
N_GRAM = 8


def function_completions() -> Iterator[dict]:
    """Yields conversations `{"messages": [user, assistant], "source": ..., "domain": "code"}`, no body twice."""
    names, ngrams = humaneval_fingerprints()
    seen = set()
    for source, path in source_files():
        for name, prompt, body in documented_functions(path):
            key = re.sub(r"\s+", "", body)
            if name in names or key in seen or ngrams & word_ngrams(prompt + body):
                continue
            seen.add(key)
            messages = [{"role": "user", "content": REQUEST + prompt}, {"role": "assistant", "content": body}]
            yield {"messages": messages, "source": f"python/{source}", "domain": "code"}


def source_files() -> Iterator[tuple[str, Path]]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib).parts
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(relative):
            yield "stdlib", path
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            if not {"test", "tests", "_vendor", "vendor"} & set(path.parts):
                yield package, path


def documented_functions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (name, signature with docstring, body) of every documented function of one file, dedented."""
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        docstring, indent = node.body[0], node.col_offset
        prompt = dedent(lines[node.lineno - 1 : docstring.end_lineno], indent)
        body = dedent(lines[docstring.end_lineno : node.end_lineno], indent).strip("\n")
        if len(prompt) <= MAX_PROMPT_CHARS and MIN_BODY_CHARS <= len(body) <= MAX_BODY_CHARS and prompt.isascii():
            yield node.name, prompt + "\n", body


def dedent(lines: list[str], indent: int) -> str:
    return "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines)


def humaneval_fingerprints() -> tuple[set[str], set[tuple[str, ...]]]:
    rows = [json.loads(line) for line in HUMANEVAL.read_text(encoding="utf-8").splitlines()]
    texts = ["".join(row["turns"] + row["reference"]).removeprefix(REQUEST.strip()) for row in rows]
    names = {name for text in texts for name in re.findall(r"def (\w+)\(", text)}
    return names, set().union(*map(word_ngrams, texts))


def word_ngrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9_]+", text.lower())
    return {tuple(words[i : i + N_GRAM]) for i in range(len(words) - N_GRAM + 1)}
