"""A card says what is known, calls the rest unknown, and carries the metadata that the Hub reads."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub_helpers import some_results, tiny_draft
from huggingface_hub import ModelCard

from conftest import tiny_llama
from transformers_griffin.hub import TrainingFacts, cards, draft_card, draft_facts
from transformers_griffin.hub.cards import template_path


ROOT = Path(__file__).parents[2]
TRAINING = TrainingFacts(
    datasets=["user/chats"],
    num_rows=1200,
    recipe={"objective": "griffin", "learning_rate": "3e-05"},
    num_steps=600,
    num_epochs=2.0,
    hardware="1 x NVIDIA H200",
    versions={"torch": "2.13.0", "transformers": "5.23.0"},
    metrics={"eval_tau": 3.25},
)


def facts(**changes):
    known = draft_facts(tiny_draft(), "alice/draft", "user/target", license="mit")
    return replace(known, **changes)


def measured_facts():
    results = some_results()
    return facts(results=results, method=results.methods[1], training=TRAINING)


WHOLE_CARD = """\
---
base_model: user/target
datasets:
- user/chats
library_name: transformers
license: mit
tags:
- griffin
- speculative-decoding
- transformers_griffin
model-index:
- name: draft
  results:
  - task:
      type: text-generation
    dataset:
      name: all, float32 T=0
      type: all
      config: float32 T=0
    metrics:
    - type: acceptance_length
      value: 4.0
      name: tau
      args:
        low: 3.5
        high: 4.5
    - type: speedup
      value: 1.5
      name: speedup over plain decoding
      args:
        low: 1.4
        high: 1.6
  - task:
      type: text-generation
    dataset:
      name: all, float32 T=1
      type: all
      config: float32 T=1
    metrics:
    - type: acceptance_length
      value: 1.25
      name: tau
      args:
        low: 1.2
        high: 1.3
---

# draft

A draft for speculative decoding with [GRIFFIN](https://arxiv.org/abs/2502.11018), made with
[transformers-griffin](https://pypi.org/project/transformers-griffin/). With it, the `generate()` of its target gives
*the same output in fewer steps*. It is no language model by itself: embedding and LM head are the target's.

| | |
|---|---|
| Target | [user/target](https://huggingface.co/user/target), type `llama`, hidden size 32, vocabulary 61 |
| Network | token_guided fusion, predict and regress outputs, 1 layer(s) |
| Size | 16,000 parameters, 0.1 MB in float32 |
| Tree | 8 drafted tokens a cycle, 3 levels, 2 tokens a level |
| Licence | mit |

## How to use

```python
import transformers_griffin  # pip install transformers-griffin
from transformers import AutoModel, AutoModelForCausalLM

target = AutoModelForCausalLM.from_pretrained("user/target", dtype="auto")
draft = AutoModel.from_pretrained("alice/draft", dtype="auto")
output = target.generate(**inputs, assistant_model=draft)
```

Or without naming the draft in your code, with the package installed:
`target.generate(**inputs, custom_generate="alice/draft", trust_remote_code=True)`. The network alone, for
study, loads without the package: `AutoModel.from_pretrained("alice/draft", trust_remote_code=True)`.

## What it is worth

tau: tokens a cycle of drafting and verification yields. SR: speed over plain `generate()` of the same target, in the
same run. Cycle cost: tau / SR. In brackets: 95 % bootstrap intervals over prompts.

| setting | prompts | count | tau | SR | over the best plain mode | tokens/s | cycle cost | answers identical |
|---|---|---|---|---|---|---|---|---|
| float32 T=0 | all | 4 | 4.00 [3.50, 4.50] | 1.50 [1.40, 1.60] | not measured | 150.0 [140.0, 160.0] | 2.67 | 4 of 4 |
| float32 T=1 | all | 4 | 1.25 [1.20, 1.30] | not measured | not measured | not measured | not measured | sampled |

Every method and setting is in `results.json`.

| measured on | |
|---|---|
| Hardware | CPU, 2 cores, x86_64 |
| Versions | torch 2.13.0, transformers 5.23.0 |
| Commit | 0123456 |
| Date | 2026-11-22 |

## Training

| | |
|---|---|
| Data | [user/chats](https://huggingface.co/datasets/user/chats), 1,200 rows |
| Steps | 600, 2.00 epochs |
| Hardware | 1 x NVIDIA H200 |
| Versions | torch 2.13.0, transformers 5.23.0 |

| argument | value |
|---|---|
| `objective` | griffin |
| `learning_rate` | 3e-05 |

| last evaluation | value |
|---|---|
| `eval_tau` | 3.25 |

## Limits

- It drafts for its target only. With another target it is refused, or, if all sizes are the same, accepts little.
- It decides how fast an answer comes, never what it says: bias and errors are the target's. Greedy output equals the
  target's token for token, sampled output has the target's distribution; in half precision a forward over many
  positions rounds differently from a forward over one, so near ties can flip.
- What it gains depends on the prompts, the temperature and the hardware; what was not measured is not promised.

## Citation

```bibtex
@article{hu2025griffin,
  title={GRIFFIN: Effective Token Alignment for Faster Speculative Decoding},
  author={Hu, Shijing and Li, Jingyang and Xie, Xingyu and Lu, Zhihui and Toh, Kim-Chuan and Zhou, Pan},
  journal={arXiv preprint arXiv:2502.11018},
  year={2025}
}
```"""


def test_the_whole_card_of_a_measured_draft():
    """
    Parameters, with d = 32 and FFN 48: fusion 2d d + d, norms 2 d, 2d 48 + 48 d; attention 2 d d + 2 d d / 2, norm d;
    MLP 2 d 48 + 48 2d: 2,080 + 64 + 4,608 + 3,072 + 32 + 6,144 = 16,000.
    """
    assert str(draft_card(measured_facts())) == WHOLE_CARD


def test_the_hub_reads_back_what_was_measured():
    card = ModelCard(str(draft_card(measured_facts())))
    found = [(result.dataset_type, result.metric_type, result.metric_value) for result in card.data.eval_results]
    assert found == [("all", "acceptance_length", 4.0), ("all", "speedup", 1.5), ("all", "acceptance_length", 1.25)]
    assert card.data.base_model == "user/target"


def test_what_nobody_knows_is_called_unknown():
    text = str(draft_card(facts(target=None)))
    assert "tau, speed and acceptance by depth: not measured." in text
    assert "| Hardware | not measured |" in text
    assert "| Data | not recorded |" in text
    assert "| Target | not published, type `llama`" in text
    assert 'from_pretrained("path/to/the/target"' in text
    assert "None" not in text
    card = ModelCard(text)
    assert card.data.base_model is None
    assert card.data.eval_results is None


def test_an_interrupted_benchmark_is_called_so():
    results = some_results(is_complete=False)
    text = str(draft_card(facts(results=results, method=results.methods[1])))
    assert "The benchmark was interrupted; some measurements are missing." in text


# ---------------------------------------------------------------------- licence and target


def test_the_licence_is_inherited_from_the_card_of_the_target(hub):
    card = b"---\nlicense: other\nlicense_name: llama3\nlicense_link: https://example.org/llama3\n---\n# target\n"
    hub.add_repo("user/target", {"README.md": card})
    found = draft_facts(tiny_draft(), "alice/draft", "user/target")
    text = str(draft_card(found))
    assert "license: other\nlicense_name: llama3\nlicense_link: https://example.org/llama3\n" in text
    assert "| Licence | llama3 |" in text


def test_the_licence_of_a_target_on_disk_is_inherited_too(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# target\n")
    found = draft_facts(tiny_draft(), "alice/draft", str(tmp_path))
    assert found.licence.license == "apache-2.0"
    assert found.target is None, "a directory is no base model"


@pytest.mark.parametrize(
    ("readme", "reason"), [(b"# target\n", "names none"), (b"---\n: [\n---\n", "cannot be read"), (None, "cannot be")]
)
def test_an_unknown_licence_is_written_as_such_and_asked_for(hub, caplog, readme, reason):
    hub.add_repo("user/target", {} if readme is None else {"README.md": readme})
    found = draft_facts(tiny_draft(), "alice/draft", "user/target")
    assert found.licence.license == "unknown"
    assert reason in caplog.text
    assert "Give `license`" in caplog.text


def test_the_target_is_known_by_its_model_too():
    """A local copy of it says less than what the draft was made for."""
    target, draft = tiny_llama(), tiny_draft()
    target.config.name_or_path = "user/target"
    assert draft_facts(draft, "alice/draft", target, license="mit").target == "user/target"
    target.config.name_or_path = "/somewhere/target"
    assert draft_facts(draft, "alice/draft", target, license="mit").target is None
    draft.config.target_name_or_path = "user/target"
    assert draft_facts(draft, "alice/draft", target, license="mit").target == "user/target"


# ---------------------------------------------------------------------- the template


def test_the_template_is_found_in_the_checkout():
    assert template_path() == ROOT / "hub_cards" / "draft_card.md"


def test_the_template_is_found_in_an_installed_package(tmp_path, monkeypatch):
    """The wheel puts `hub_cards` beside `cards.py`."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "draft_card.md").touch()
    monkeypatch.setattr(cards, "__file__", str(tmp_path / "cards.py"))
    assert template_path() == tmp_path / "templates" / "draft_card.md"
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"hub_cards" = "transformers_griffin/hub/templates"' in pyproject


def test_a_depth_that_adapts_is_said():
    known = facts()
    card = str(draft_card(replace(known, tree=replace(known.tree, draft_level_cost=0.2))))
    assert "8 drafted tokens a cycle, 3 levels, 2 tokens a level; fewer levels where more do not pay |" in card
