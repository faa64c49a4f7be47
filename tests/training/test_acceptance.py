"""AcceptanceEvaluator: what it measures is what decoding does, and the training does not notice."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from acceptance_helpers import MINI, TREE, mini_trainer, prompts, tiny_trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, TrainerCallback

from transformers_griffin.evaluation import answer_hits, chains
from transformers_griffin.training import AcceptanceEvaluator, acceptance
from transformers_griffin.training.acceptance import MeasuredAnswer, prompt_ids, summarize


MINI_PROMPTS = [list(range(300 + seed, 310 + 2 * seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return mini_trainer(tmp_path_factory.mktemp("mini"))


def test_it_measures_what_generate_does(mini):
    """tau and depths of the mini pair against `generate()`, prompt by prompt."""
    lengths = []
    for prompt in MINI_PROMPTS:
        ids = torch.tensor([prompt])
        mini.draft.generation_config, own = TREE, mini.draft.generation_config
        output = mini.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=mini.draft.eval(),
            max_new_tokens=24,
            do_sample=False,
            return_dict_in_generate=True,
        )
        mini.draft.generation_config = own
        lengths += output.acceptance_lengths[0]
    metrics = AcceptanceEvaluator(MINI_PROMPTS, tree=TREE, max_new_tokens=24)(mini)
    assert metrics["tau"] == sum(lengths) / len(lengths) > 1.5
    for i in (1, 2, 3, 4):
        assert metrics[f"acceptance_depth_{i}"] == sum(length > i for length in lengths) / len(lengths)
    assert "acceptance_depth_5" not in metrics


def hits_along_one_chain(target, draft, sequence, start, num_passes, top_k) -> list[bool]:
    """Oracle: the draft's plain forward over x_1 .. x_{start+1}, continued with the features it wrote itself."""
    features = target.base_model(input_ids=sequence).last_hidden_state[:, : start + 1]
    hits = []
    for n in range(num_passes):
        newest = start + n  # the draft's position, which reads x_{newest+1} and looks for x_{newest+2}
        if newest + 2 >= sequence.shape[1]:
            break
        output = draft(input_ids=sequence[:, 1 : newest + 2], features=features)
        likely = draft.compute_logits(output.predict[:, -1]).topk(top_k).indices
        hits.append(int(sequence[0, newest + 2]) in likely[0].tolist())
        features = torch.cat((features, output.regress[:, -1:]), dim=1)
    return hits


@torch.no_grad()
def test_hits_of_all_passes_and_positions_equal_those_of_single_chains(mini):
    prompt = torch.tensor([MINI_PROMPTS[2]])
    sequence = mini.target.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=14, do_sample=False)
    prompt_length, draft = prompt.shape[1], mini.draft.eval()
    hits = answer_hits(mini.target, draft, sequence, prompt_length, num_passes=4, top_k=(1, 3))
    assert hits.shape == (2, 4, 13)
    for row, k in enumerate((1, 3)):
        found = chains(hits[row])
        expected = [hits_along_one_chain(mini.target, draft, sequence, prompt_length - 1 + c, 4, k) for c in range(13)]
        assert found == expected
        assert 0 < sum(map(sum, found)) < sum(map(len, found)), "a test of all hits or none would say little"


def test_a_chain_that_hits_is_what_a_drafted_chain_accepts(mini):
    """With trees of width 1 a cycle accepts just the tokens that top-1 chains find: depth 1 is the first cycle's."""
    prompt = torch.tensor([MINI_PROMPTS[0]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 20, "do_sample": False}
    mini.draft.generation_config, own = (
        type(TREE)(num_assistant_tokens=4, draft_tree_depth=4, draft_tree_top_k=1),
        (mini.draft.generation_config),
    )
    output = mini.target.generate(prompt, assistant_model=mini.draft.eval(), return_dict_in_generate=True, **settings)
    mini.draft.generation_config = own
    found = chains(answer_hits(mini.target, mini.draft, output.sequences, prompt.shape[1], 4, (1,))[0])
    start, expected = 0, []
    while start < len(found):
        accepted = next((n for n, is_hit in enumerate(found[start]) if not is_hit), len(found[start]))
        left = len(found) - start
        expected.append(min(accepted + 1, left))
        start += accepted + 1
    assert output.acceptance_lengths[0] == expected
    assert max(expected) > 1


def test_metrics_by_hand():
    """
    Two answers: cycles that emit 3 and 1 tokens, and 2. Hits of pass 1: top 1 `x . x` and `.`, top 3 all but the last.
    Chains of k = 3 over two passes: `x x`, `x .`, `x` and `.`: 1 of 4 misaligned by pass 1, 1 of 2 by pass 2.
    """
    x, o = True, False
    first = torch.tensor([[[x, o, x], [o, o, o]], [[x, x, x], [o, x, o]]])
    second = torch.tensor([[[o], [o]], [[o], [o]]])
    metrics = summarize([MeasuredAnswer([3, 1], first, 0.5), MeasuredAnswer([2], second, 0.0)], depth=2)
    assert metrics == pytest.approx(
        {
            "tau": 2.0,
            "acceptance_depth_1": 2 / 3,
            "acceptance_depth_2": 1 / 3,
            "top1_agreement": 2 / 4,
            "top3_agreement": 3 / 4,
            "pass_1/misaligned_rate": 1 / 4,
            "pass_2/misaligned_rate": 1 / 2,
            "repeated_4grams": 0.25,
        }
    )


def test_answers_without_a_cycle_have_no_metrics_but_no_error_either(tmp_path):
    metrics = AcceptanceEvaluator(prompts(1), tree=TREE, max_new_tokens=1)(tiny_trainer(tmp_path))
    assert math.isnan(metrics["tau"])
    assert math.isnan(metrics["top1_agreement"])


SAMPLING = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 12}


def test_measuring_leaves_nothing_behind(tmp_path):
    trainer = tiny_trainer(tmp_path)
    draft = trainer.draft.train()
    config, weights = draft.generation_config, {n: w.clone() for n, w in draft.state_dict().items()}
    config_before, state = config.to_dict(), torch.get_rng_state()
    evaluator = AcceptanceEvaluator(prompts(), tree=TREE, **SAMPLING)
    first = evaluator(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert draft.training
    assert all(module.training for module in draft.modules())
    assert draft.generation_config is config
    assert config.to_dict() == config_before
    assert all(torch.equal(weight, weights[name]) for name, weight in draft.state_dict().items())
    torch.manual_seed(77)
    assert evaluator(trainer) == first, "sampled answers depend on the evaluator's seed alone"


@pytest.mark.parametrize("settings", [{}, SAMPLING], ids=["greedy", "sampled"])
def test_training_is_the_same_to_the_last_bit_with_and_without_it(tmp_path, settings):
    runs = []
    for extra in ((), (AcceptanceEvaluator(prompts(), tree=TREE, **{"max_new_tokens": 8, **settings}),)):
        trainer = tiny_trainer(tmp_path, extra_metrics=extra, eval_strategy="steps", eval_steps=1, feature_noise=0.2)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, trainer))
    assert runs[0][0] == runs[1][0]
    found, expected = (dict(trainer.draft.named_parameters()) for _, trainer in runs)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert any("eval_tau" in entry for entry in runs[1][1].state.log_history)


class Recorder(TrainerCallback):
    """Sees what `report_to` integrations see."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_tau_reaches_the_log_the_reports_and_the_choice_of_the_best_model(tmp_path):
    recorder = Recorder()
    trainer = tiny_trainer(
        tmp_path,
        extra_metrics=[AcceptanceEvaluator(prompts(), tree=TREE, max_new_tokens=8)],
        callbacks=[recorder],
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="tau",
    )
    trainer.train()
    in_history = [entry["eval_tau"] for entry in trainer.state.log_history if "eval_tau" in entry]
    assert len(in_history) == 2
    assert [logs["eval_tau"] for logs in recorder.logs if "eval_tau" in logs] == in_history
    assert trainer.args.greater_is_better
    assert trainer.state.best_metric == max(in_history)
    for name in ("acceptance_depth_4", "top1_agreement", "top3_agreement", "pass_4/misaligned_rate"):
        assert any(f"eval_{name}" in logs for logs in recorder.logs)


def test_a_draft_with_adapters_is_measured_with_them(tmp_path):
    trainer = tiny_trainer(tmp_path, model=lambda draft: get_peft_model(draft, LoraConfig(target_modules=["o_proj"])))
    evaluator = AcceptanceEvaluator(prompts(), tree=TREE, max_new_tokens=24)
    before = evaluator(trainer)
    torch.manual_seed(0)
    for name, weight in trainer.draft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    adapted = evaluator(trainer)
    assert adapted != before
    with trainer.model.disable_adapter():
        assert evaluator(trainer) == before


def test_mixed_precision_does_not_hinder_decoding(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, extra_metrics=[AcceptanceEvaluator(prompts(), max_new_tokens=8)])
    trainer.train()
    assert trainer.evaluate()["eval_tau"] >= 1.0


def test_conversations_are_rendered_with_the_target_s_template():
    tokenizer = AutoTokenizer.from_pretrained(MINI / "target")
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt_ids(messages, tokenizer).tolist() == [expected]
    assert prompt_ids([1, 2, 3], None).tolist() == [[1, 2, 3]]
    assert prompt_ids(torch.tensor([1, 2, 3]), None).tolist() == [[1, 2, 3]]


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="There are no prompts"):
        AcceptanceEvaluator([])
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer"):
        AcceptanceEvaluator([[{"role": "user", "content": "Hello"}]])(trainer)
    monkeypatch.setattr(acceptance, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3, so it cannot decode"):
        AcceptanceEvaluator(prompts())(trainer)


SCRIPT = """
import json, sys, torch
from torch.distributed.fsdp import FSDPModule
sys.path[:0] = json.loads(sys.argv[1])
from acceptance_helpers import TREE, prompts, tiny_trainer
from run_distributed import allow_fsdp_on_cpu
from transformers_griffin.training import AcceptanceEvaluator
torch.set_num_threads(1)
settings = {"tree": TREE, "max_new_tokens": 16}
extra = [AcceptanceEvaluator(prompts(3), **settings)]
extra += [lambda trainer: {"one": AcceptanceEvaluator(prompts(1), **settings)(trainer)["tau"]}]
overrides = json.loads(sys.argv[3])
if "fsdp" in overrides:
    allow_fsdp_on_cpu()
trainer = tiny_trainer(sys.argv[2], extra_metrics=extra, **overrides)
trainer.train()
metrics = trainer.evaluate()
assert isinstance(trainer.draft, FSDPModule) == ("fsdp" in overrides)
if trainer.is_world_process_zero():
    json.dump(metrics, open(sys.argv[2] + "/metrics.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", [{}, {"fsdp": True, "fsdp_config": {"version": 2}}], ids=["ddp", "fsdp2"])
def test_two_processes_share_the_prompts_and_find_what_one_finds(tmp_path, wrapping):
    """
    Three prompts on two processes, and one prompt, of which the second process gets nothing; after every step, so that
    the last metrics also tell whether a step after an evaluation went well.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    overrides = {"per_device_train_batch_size": 1, "optim": "sgd", "max_steps": 3, "feature_noise": 0.0}
    overrides |= {"ddp_find_unused_parameters": False, "eval_strategy": "steps", "eval_steps": 1}
    script = [str(tmp_path / "script.py"), paths, str(tmp_path), json.dumps(overrides | wrapping)]
    subprocess.run([*launch, *script], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1200)
    found = json.loads((tmp_path / "metrics.json").read_text())

    evaluator = AcceptanceEvaluator(prompts(3), tree=TREE, max_new_tokens=16)
    one = tiny_trainer(tmp_path, extra_metrics=[evaluator], **overrides | {"per_device_train_batch_size": 2})
    one.train()
    expected = evaluator(one)
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert found["eval_one"] == AcceptanceEvaluator(prompts(1), tree=TREE, max_new_tokens=16)(one)["tau"]
