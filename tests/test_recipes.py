"""Recipes: every YAML is one that the script understands, and the script trains, continues and goes on stepwise."""

import json
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainingArguments

from conftest import tiny_llama
from transformers_griffin import GriffinDraftModel, cli
from transformers_griffin.training import (
    GriffinTrainingArguments,
    load_training_data,
    prepare_features,
    tokenize_dataset,
)
from transformers_griffin.training import recipe as recipe_module


ROOT = Path(__file__).parents[1]
TRAINERS = ROOT / "trainers"
RECIPES = sorted((TRAINERS / "configs").glob("*.yaml"))
README = (TRAINERS / "README.md").read_text(encoding="utf-8")

QUIET = {"use_cpu": "true", "report_to": "none", "disable_tqdm": "true"}


def as_flags(settings: dict[str, str]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name}", value)]


@pytest.fixture
def from_root(monkeypatch, tmp_path):
    """Recipes name their files from the root of the checkout; `datasets` caches elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A directory with a tiny target of 61 words and 12 rows of random words, as overrides that a run needs."""
    directory = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(directory / "target")
    tiny_llama().save_pretrained(directory / "target")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(1, 61, (10,), generator=generator).tolist(), "loss_mask": [0] * 3 + [1] * 7}
        for _ in range(12)
    ]
    (directory / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return directory


def run(tiny: Path, output_dir: Path, *more: str) -> Path:
    """Runs the script on the tiny target; returns the directory of the final draft."""
    settings = {
        "target": str(tiny / "target"),
        "dataset": str(tiny / "rows.jsonl"),
        "output_dir": str(output_dir),
        "eval_rows": "2",
        "per_device_train_batch_size": "2",
    }
    recipe_module.train_recipe(*recipe_module.parse_recipe([*as_flags(settings | QUIET), *more]))
    return output_dir / "final"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- the files


def test_there_is_a_recipe_for_every_target_of_the_paper_and_for_current_ones():
    assert {path.stem for path in RECIPES} == {
        *("llama2_7b_chat", "llama2_13b_chat", "llama3_8b_instruct", "llama3_70b_instruct", "vicuna_7b_v1.5"),
        *("qwen2_7b_instruct", "mixtral_8x7b_instruct"),
        *("llama3.1_8b_instruct", "qwen3_8b", "gemma3_4b_it", "gpt_oss_20b", "mini_pair"),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_into_the_arguments(path):
    recipe, args = recipe_module.parse_recipe([str(path)])
    assert isinstance(args, GriffinTrainingArguments)
    assert args.use_cpu != torch.accelerator.is_available()
    assert (args.num_passes, args.alignment_top_k, args.adam_beta2) == (3, 3, 0.95)
    assert isinstance(args.learning_rate, float)
    assert isinstance(recipe.dataset, list)
    assert isinstance(recipe.draft_config, dict | None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_what_it_assumes_how_to_launch_and_override_it_and_whether_it_was_run(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    for begin in ("# Assumes ", "# Launch ", "# Override "):
        assert f"\n{begin}" in head
    assert re.search(r"^# (Measured on|Not yet run|Run for)", head, flags=re.MULTILINE)
    assert f"trainers/configs/{path.name}" in head
    assert f"`{path.name}`" in README


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "mini_pair"], ids=lambda path: path.stem)
def test_every_number_of_a_recipe_names_its_source(path):
    numbers = re.findall(r"^\w+: *[\d.]+(?:e-?\d+)?(?=\s|$).*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(numbers) >= 20
    assert not [line for line in numbers if not re.search(r"\[(code|EAGLE|paper|ours)\]", line)]


def test_every_key_of_a_recipe_is_documented():
    own = {item.name: item.metadata.get("help") for item in fields(recipe_module.RecipeArguments)}
    own |= {item.name: item.metadata.get("help") for item in fields(GriffinTrainingArguments)}
    stock = {item.name for item in fields(TrainingArguments)}
    for path in RECIPES:
        for key in recipe_module.read_recipe(str(path)):
            assert key in stock or own[key], f"{key} has no help"
    for item in fields(recipe_module.RecipeArguments):
        assert f"`{item.name}`" in README


@pytest.mark.parametrize("path", sorted((TRAINERS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_understands_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    assert f"`{path.name}`" in README


def test_the_vicuna_template_writes_fastchats_conversation_and_marks_the_answers():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/mini/target")
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.chat_template = (TRAINERS / "configs/chat_templates/vicuna.jinja").read_text(encoding="utf-8")
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s>Be kind. USER: Hi ASSISTANT: Hello</s> USER: Bye ASSISTANT:"
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == " Hello</s>"


# ---------------------------------------------------------------------- arguments


def test_the_command_line_wins_over_the_file_and_unknown_keys_are_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("target: a\ndataset: b.jsonl\nlearning_rate: 3e-5\nnum_passes: 2\nreport_to: none\n")
    more = ["--num_passes", "4", "--use_cpu", "true", "--draft_config", '{"intermediate_size": 48}']
    recipe, args = recipe_module.parse_recipe([str(file), *more])
    assert (recipe.target, recipe.dataset, recipe.draft_config) == ("a", ["b.jsonl"], {"intermediate_size": 48})
    assert (args.learning_rate, args.num_passes) == (3e-5, 4)

    file.write_text("target: a\ndataset: b.jsonl\nlerning_rate: 1.0\n")
    with pytest.raises(
        ValueError, match=r"has the key 'lerning_rate', which is no argument\. Did you mean: learning_rate"
    ):
        recipe_module.parse_recipe([str(file)])
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser: \['--lerning_rate', '1'\]"):
        recipe_module.parse_recipe(["--target", "a", "--dataset", "b", "--lerning_rate", "1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "b"], "`target` is not given. Name a recipe of trainers/configs, or give --target."),
        (["--target", "a", "--dataset", "b", "--tau_prompts", "600"], "is 600, but they are taken from 512"),
        (["--target", "a"], "Neither `dataset` nor `features` is given."),
        (
            ["--target", "a", "--dataset", "b", "--target_quantization", "2bit"],
            "'2bit', but must be one of 8bit, 4bit",
        ),
    ],
)
def test_what_a_recipe_lacks_is_said(argv, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe_module.parse_recipe(argv)


def test_griffin_train_passes_everything_behind_the_recipe_on(tiny, tmp_path, from_root):
    """The command, with a key of its own name (`debug` is one of `TrainingArguments` too) and a list."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"target: {tiny / 'target'}\ndataset: {tiny / 'rows.jsonl'}\neval_rows: 0\nmax_steps: 5\n")
    overrides = {"max_steps": "1", "per_device_train_batch_size": "2", "output_dir": str(tmp_path / "run")}
    lists = ["--num_passes", "2", "--num_passes_schedule", "0", "--debug", "underflow_overflow"]
    assert cli.main(["train", str(file), *as_flags(overrides | QUIET), *lists]) == 0
    assert json.loads((tmp_path / "run/final/config.json").read_text())["model_type"] == "griffin_draft"


def test_griffin_train_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("target: a\ndatset: b\n")
    for argv, message in (
        ([str(tmp_path / "recipe.yaml")], "has the key 'datset', which is no argument. Did you mean: dataset"),
        (["Qwen/Qwen3-8B"], "Qwen/Qwen3-8B is no recipe. Give a YAML file"),
        (["nowhere.yaml"], "nowhere.yaml is no file. Give a YAML file"),
    ):
        assert cli.main(["train", *argv]) == 1
        error = capsys.readouterr().err
        assert error.startswith("griffin train: ")
        assert message in error
        assert error.count("\n") == 1


def test_the_script_is_the_command(monkeypatch):
    """What launchers start parses and trains by the same two functions."""
    asked = []
    monkeypatch.setattr(recipe_module, "train_recipe", lambda *parts: asked.append(parts))
    monkeypatch.setattr(sys, "argv", ["train_griffin.py", str(TRAINERS / "configs/mini_pair.yaml"), "--seed", "7"])
    runpy.run_path(str(TRAINERS / "train_griffin.py"), run_name="__main__")
    ((recipe, args),) = asked
    assert (recipe.target, args.seed) == ("examples/mini/target", 7)


def test_quantisation_reaches_the_target(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        recipe_module.AutoModelForCausalLM, "from_pretrained", lambda name, **kwargs: asked.update(kwargs, name=name)
    )
    recipe_module.load_target(recipe_module.RecipeArguments(target="t", dataset=["d"], target_quantization="4bit"))
    assert asked["quantization_config"].load_in_4bit
    assert (asked["name"], asked["dtype"]) == ("t", "auto")
    assert "device_map" not in asked


# ---------------------------------------------------------------------- runs


def test_a_run_saves_a_draft_for_the_target_and_its_evaluation(tiny, tmp_path, from_root):
    more = ["--num_passes", "2", "--tau_prompts", "2", "--draft_config", '{"intermediate_size": 40}']
    final = run(tiny, tmp_path / "run", "--max_steps", "1", *more)
    draft = GriffinDraftModel.from_pretrained(final).bind(tiny_llama())
    assert (draft.config.intermediate_size, draft.dtype) == (40, torch.float32)
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert {"eval_pass_1/accuracy", "eval_pass_2/accuracy", "eval_tau"} <= metrics.keys()


def test_step_2_starts_from_the_draft_of_step_1(tiny, tmp_path, from_root):
    """With learning rate 0 nothing but the start decides the result; with one, both passes change it."""
    step1 = run(tiny, tmp_path / "step1", "--max_steps", "1", "--num_passes", "1", "--learning_rate", "0.01")
    stepwise = ["--draft", str(step1), "--max_steps", "1", "--num_passes", "2", "--num_passes_schedule", "0"]
    unchanged = run(tiny, tmp_path / "still", *stepwise, "--learning_rate", "0")
    assert are_equal(weights(unchanged), weights(step1))
    step2 = run(tiny, tmp_path / "step2", *stepwise, "--learning_rate", "0.01")
    assert not are_equal(weights(step2), weights(step1))


def test_the_same_command_continues_an_interrupted_run(tiny, tmp_path, from_root):
    """One step, saved; then the same directory with three steps: the log holds every step once."""
    run(tiny, tmp_path / "run", "--max_steps", "1", "--save_steps", "1", "--logging_steps", "1")
    run(tiny, tmp_path / "run", "--max_steps", "3", "--save_steps", "1", "--logging_steps", "1")
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


def test_a_run_from_stored_features_trains_like_one_that_computes_them(tiny, tmp_path, from_root):
    """The features are stored in bfloat16, so the same step differs by their rounding only."""
    target = AutoModelForCausalLM.from_pretrained(tiny / "target")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "target")
    rows = tokenize_dataset(load_training_data([str(tiny / "rows.jsonl")]), tokenizer, max_length=16)
    prepare_features(target, tokenizer, rows, tmp_path / "features")
    more = ["--max_steps", "1", "--feature_noise", "0", "--learning_rate", "0.01"]
    online = weights(run(tiny, tmp_path / "online", *more))
    stored = weights(run(tiny, tmp_path / "stored", *more, "--features", str(tmp_path / "features")))
    for name in online:
        # AdamW's first step moves every weight by about the learning rate; few have gradients that rounding can turn.
        assert (online[name] - stored[name]).abs().mean() < 0.001, name


def test_the_mini_recipe_runs_as_it_is(tmp_path, from_root):
    """Two steps on short rows of one file, and one prompt for tau; everything else is the file's, the device too."""
    overrides = {
        "max_steps": "2",
        "max_length": "160",
        "per_device_train_batch_size": "2",
        "eval_rows": "8",
        "tau_prompts": "1",
        "dataset": "trainers/mini_pair/data/code_*.jsonl.gz",
        "output_dir": str(tmp_path / "run"),
    }
    quiet = {name: value for name, value in QUIET.items() if name != "use_cpu"}
    argv = [str(TRAINERS / "configs/mini_pair.yaml"), *as_flags(overrides | quiet)]
    recipe_module.train_recipe(*recipe_module.parse_recipe(argv))
    assert GriffinDraftModel.from_pretrained(tmp_path / "run" / "final").config.intermediate_size == 384
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_tau"] >= 1
