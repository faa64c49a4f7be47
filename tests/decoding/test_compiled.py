"""
The compiled cycle gives what the cycle gives, and is compiled once.

Most tests compile with a backend that runs the captured graph as it is: what can go wrong is in what is captured.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, make_prompt, make_target
from batches import decode_batch, decode_batch_plainly
from exactness import GREEDY, PAPER_TREE, SMALL_TREE, assert_exact, decode_plainly, decode_with_noisy_oracle
from multimodal import IMAGE_TARGETS, QWEN2_VL, ImageTarget
from test_batch_images import decode_images_plainly
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, StaticCache

from noisy_oracle import noisy_oracle, rows_are_followed
from transformers_griffin import GriffinDraftModel, GriffinGenerateOutput
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.modeling_griffin import DEFAULT_TREE


__all__ = ["rows_are_followed"]

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LLAMA = BY_NAME["Llama"]
TREE_ARCHITECTURES = [architecture for architecture in ARCHITECTURES if architecture.mode == "tree"]
# Full attention, a window, both, and learned positions.
FEW = [
    BY_NAME[name] for name in ("Llama", "Mistral, window", "Gemma 3, alternating windows", "GPT-2, learned positions")
]


class CountingBackend:
    """Runs what was captured, and counts how often something was."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "CountingBackend":
        return self  # `generate()` copies its configuration


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing that another test has compiled, and no limit of compilations that counts all tests together."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(backend: Any = None, **settings: Any) -> dict[str, Any]:
    """Arguments of `generate()` that compile on every device."""
    config = CompileConfig(backend=backend or CountingBackend(), mode=None, **settings)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def backend_of(settings: dict[str, Any]) -> CountingBackend:
    return settings["compile_config"].backend


def assert_same_cycles(ours: GriffinGenerateOutput, eager: GriffinGenerateOutput) -> None:
    assert ours.sequences.tolist() == eager.sequences.tolist()
    assert ours.acceptance_lengths == eager.acceptance_lengths


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=() if a in FEW else pytest.mark.slow) for a in TREE_ARCHITECTURES],
)
def test_greedy_answer_is_that_of_plain_decoding(architecture: Architecture) -> None:
    plain, settings = decode_plainly(architecture, 20), compiled()
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, **settings)
    assert_exact(plain, ours, SMALL_TREE[1])
    eager, _ = decode_with_noisy_oracle(plain, SMALL_TREE)
    assert_same_cycles(ours, eager)
    assert len(backend_of(settings).graphs) >= 3, "drafting, verification and compaction"


def test_nothing_is_compiled_again_for_longer_and_shorter_prompts_and_answers() -> None:
    settings, target = compiled(fullgraph=True), make_target(LLAMA)
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.update(**dict(zip(DEFAULT_TREE, SMALL_TREE, strict=True)))
    for length, num_new in [(24, 30), (150, 40), (9, 7), (300, 64), (24, 200)]:
        prompt, greedy = make_prompt(length), GREEDY | {"max_new_tokens": num_new}
        plain = target.generate(prompt, **greedy)
        ours = target.generate(prompt, assistant_model=draft, **greedy, **settings)
        assert ours.sequences.tolist() == plain.sequences.tolist()
        assert len(backend_of(settings).graphs) == 3


def test_second_answer_needs_no_compilation() -> None:
    plain, settings = decode_plainly(LLAMA, 20), compiled(fullgraph=True)
    for _ in range(2):
        ours, _ = decode_with_noisy_oracle(plain, PAPER_TREE, **settings)
        assert_exact(plain, ours, PAPER_TREE[1])
    assert len(backend_of(settings).graphs) == 3


@torch._dynamo.config.patch(recompile_limit=2)
def test_more_trees_than_torch_compiles_a_function_for() -> None:
    """And the first one keeps its graphs."""
    settings, target = compiled(fullgraph=True), make_target(LLAMA)
    draft, prompt, greedy = GriffinDraftModel.from_target(target), make_prompt(24), GREEDY | {"max_new_tokens": 6}
    plain = target.generate(prompt, **greedy).sequences.tolist()
    for tree in [(2, 2, 1), (3, 2, 2), (4, 2, 2), (2, 2, 1)]:
        draft.generation_config.update(**dict(zip(DEFAULT_TREE, tree, strict=True)))
        assert target.generate(prompt, assistant_model=draft, **greedy, **settings).sequences.tolist() == plain
    assert len(backend_of(settings).graphs) == 3 * 3


def test_another_tree_is_compiled_for_its_own_size_and_caches_of_any_length() -> None:
    """Else the compiler concludes from two trees that the next one may have any size, and writes slower code."""
    settings, target = compiled(fullgraph=True), make_target(LLAMA)
    draft, prompt, greedy = GriffinDraftModel.from_target(target), make_prompt(24), GREEDY | {"max_new_tokens": 6}
    for tree in [(4, 2, 2), (8, 4, 3)]:
        draft.generation_config.update(**dict(zip(DEFAULT_TREE, tree, strict=True)))
        target.generate(prompt, assistant_model=draft, **greedy, **settings)
    for graph in backend_of(settings).graphs:
        inputs = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        of_any_size = [tensor for tensor in tensors if any(isinstance(size, torch.SymInt) for size in tensor.shape)]
        assert of_any_size
        assert all(tensor.ndim == 4 and isinstance(tensor.shape[2], torch.SymInt) for tensor in of_any_size)


def test_all_depths_are_compiled_with_the_first_answer() -> None:
    """So short that it needs one depth; later answers take more of them and find them compiled."""
    plain, settings = decode_plainly(LLAMA, 20), compiled(fullgraph=True)
    draft = noisy_oracle(plain.target, plain.output.sequences, PAPER_TREE)
    draft.generation_config.draft_level_cost = 0.2
    short = GREEDY | {"max_new_tokens": 5}
    ours = plain.target.generate(plain.prompt, assistant_model=draft, **short, **settings)
    assert ours.sequences.tolist() == plain.output.sequences[:, :25].tolist()
    num_compiled = len(backend_of(settings).graphs)
    assert num_compiled == 3 * len([6, 3, 2, 1])
    ours = plain.target.generate(plain.prompt, assistant_model=draft, **GREEDY, **settings)
    assert ours.sequences.tolist() == plain.output.sequences.tolist()
    assert len(backend_of(settings).graphs) == num_compiled
    eager = plain.target.generate(plain.prompt, assistant_model=draft, **GREEDY)
    assert_same_cycles(ours, eager)


@pytest.mark.usefixtures("rows_are_followed")
def test_all_depths_are_compiled_for_a_batch_of_padded_rows() -> None:
    plain, settings = decode_batch_plainly(LLAMA), compiled(fullgraph=True)
    draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in range(3)], SMALL_TREE)
    draft.generation_config.draft_level_cost = 0.2
    arguments = {"attention_mask": plain.mask, "assistant_model": draft, "do_sample": False} | settings
    ours = plain.target.generate(plain.prompts, max_new_tokens=5, **arguments)
    num_compiled = len(backend_of(settings).graphs)
    assert num_compiled == 3 * len([4, 2, 1])
    ours = plain.target.generate(plain.prompts, max_new_tokens=plain.num_new, **arguments)
    assert ours.tolist() == plain.sequences.tolist()
    assert len(backend_of(settings).graphs) == num_compiled


@pytest.mark.usefixtures("rows_are_followed")
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=() if a in FEW[:3] else pytest.mark.slow) for a in TREE_ARCHITECTURES],
)
def test_rows_of_a_batch_are_those_of_plain_decoding(architecture: Architecture) -> None:
    """Padded on the left, of different lengths, and one of them ends early."""
    plain, settings = decode_batch_plainly(architecture), compiled()
    ours, _ = decode_batch(plain, SMALL_TREE, **settings)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(set(map(tuple, ours.acceptance_lengths))) == 3
    eager, _ = decode_batch(plain, SMALL_TREE)
    assert_same_cycles(ours, eager)
    eos = plain.ends_at(1, 8)
    ended = {"eos_token_id": eos, "pad_token_id": 0}
    with_end, _ = decode_batch(plain, SMALL_TREE, **settings, **ended)
    assert with_end.sequences[:, plain.prompts.shape[1] :].tolist() == [
        row[plain.prompts.shape[1] :] for row in plain.cut_behind(eos)
    ]


@pytest.mark.usefixtures("rows_are_followed")
@pytest.mark.parametrize(
    "image_target",
    [pytest.param(t, id=t.name, marks=() if t is QWEN2_VL else pytest.mark.slow) for t in IMAGE_TARGETS],
)
def test_prompts_with_images_of_a_batch_are_answered_as_in_plain_decoding(image_target: ImageTarget) -> None:
    """Their positions have three dimensions, for most of these targets, and one row ends early."""
    plain = decode_images_plainly(image_target)
    eos = plain.ends_at(1, 10)
    ours, _ = decode_batch(plain, SMALL_TREE, eos_token_id=eos, **compiled(), **plain.images)
    assert ours.sequences.tolist() == plain.cut_behind(eos)


@pytest.mark.parametrize("processors", [{"temperature": 0.8}, {"top_k": 20, "repetition_penalty": 1.3}])
def test_samples_of_a_seed_are_those_without_compilation(processors: dict[str, Any]) -> None:
    plain, settings = decode_plainly(LLAMA, 20), compiled()
    sampling = {"do_sample": True, **processors}
    outputs = []
    for kwargs in (settings, {}):
        torch.manual_seed(3)
        outputs.append(decode_with_noisy_oracle(plain, SMALL_TREE, **(sampling | kwargs))[0])
    assert_same_cycles(*outputs)
    assert outputs[0].sequences.tolist() != plain.output.sequences.tolist()


class OwnProcessor(LogitsProcessor):
    """Whoever does not know it shows it every row and every prefix, once."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores.roll(1, dims=-1)


def test_processors_of_users_keep_rows_in_step() -> None:
    plain, settings = decode_batch_plainly(LLAMA), compiled()
    own = {"logits_processor": LogitsProcessorList([OwnProcessor()]), "max_new_tokens": 12}
    expected = plain.target.generate(plain.prompts, attention_mask=plain.mask, do_sample=False, **own)
    draft = noisy_oracle(plain.target, [plain.without_padding(row) for row in range(3)], SMALL_TREE)
    ours = plain.target.generate(
        plain.prompts, attention_mask=plain.mask, do_sample=False, assistant_model=draft, **own, **settings
    )
    assert ours.tolist() == expected.tolist()


def test_outputs_are_those_without_compilation() -> None:
    plain, settings = decode_plainly(LLAMA, 20), compiled()
    wanted = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, **settings, **wanted)
    eager, _ = decode_with_noisy_oracle(plain, SMALL_TREE, cache_implementation="static", **wanted)
    assert_same_cycles(ours, eager)
    for name in ("scores", "logits"):
        for a, b in zip(getattr(ours, name), getattr(eager, name), strict=True):
            torch.testing.assert_close(a, b)
    for of_step, expected in zip(ours.hidden_states, eager.hidden_states, strict=True):
        for a, b in zip(of_step, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_cache_of_a_user_holds_what_plain_decoding_leaves_and_can_be_used_again() -> None:
    plain, settings = decode_plainly(LLAMA, 20), compiled()
    settings.pop("cache_implementation")
    cache = StaticCache(config=plain.target.config, max_cache_len=128)
    for _ in range(2):
        cache.reset()
        ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, past_key_values=cache, **settings)
        assert_exact(plain, ours, SMALL_TREE[1])
    length = plain.output.sequences.shape[1] - 1  # nobody reads the last token
    assert int(cache.get_seq_length()) == length
    expected = plain.output.past_key_values
    for ours_layer, layer in zip(cache.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours_layer.keys[:, :, :length], layer.keys)
        torch.testing.assert_close(ours_layer.values[:, :, :length], layer.values)
    assert len(backend_of(settings).graphs) == 3


def test_prompt_is_read_in_chunks() -> None:
    plain, settings = decode_plainly(LLAMA, 48), compiled()
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, prefill_chunk_size=16, **settings)
    assert_exact(plain, ours, SMALL_TREE[1])
    assert len(backend_of(settings).graphs) == 3  # of the cycle: no chunk was compiled


@pytest.mark.parametrize("settings", [{"disable_compile": True}, {"cache_implementation": None}])
def test_nothing_is_compiled_where_plain_decoding_is_not(settings: dict[str, Any]) -> None:
    plain, asked = decode_plainly(LLAMA, 20), compiled()
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, **(asked | settings))
    assert_exact(plain, ours, SMALL_TREE[1])
    assert backend_of(asked).graphs == []


def test_without_being_asked_a_cpu_compiles_nothing() -> None:
    plain = decode_plainly(LLAMA, 20)
    if plain.target.device.type != "cpu":
        pytest.skip("other devices do")
    config = CompileConfig(backend=CountingBackend(), mode=None)
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, cache_implementation="static", compile_config=config)
    assert_exact(plain, ours, SMALL_TREE[1])
    assert config.backend.graphs == []


def test_copies_of_a_target_share_what_was_compiled() -> None:
    plain, settings = decode_plainly(LLAMA, 20), compiled(fullgraph=True)
    decode_with_noisy_oracle(plain, SMALL_TREE, **settings)
    again = copy.deepcopy(plain.target)
    draft = noisy_oracle(again, plain.output.sequences, SMALL_TREE)
    ours = again.generate(plain.prompt, assistant_model=draft, **GREEDY, **settings)
    assert_exact(plain, ours, SMALL_TREE[1])
    assert len(backend_of(settings).graphs) == 3


def test_features_that_the_draft_reads_are_the_target_s() -> None:
    """Whatever graph the head is in: the draft is told the same as without compilation."""
    plain, settings = decode_plainly(LLAMA, 20), compiled()
    seen: dict[str, list[torch.Tensor]] = {"eager": [], "compiled": []}
    original = TargetForward.verify
    for name, kwargs in (("eager", {}), ("compiled", settings)):

        def verify(self: Any, *args: Any, to: list[torch.Tensor] = seen[name]) -> Any:
            outputs, features = original(self, *args)
            to.append(features.clone())
            return outputs, features

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TargetForward, "verify", verify)
            decode_with_noisy_oracle(plain, SMALL_TREE, **kwargs)
    assert len(seen["eager"]) == len(seen["compiled"]) > 8
    for a, b in zip(seen["eager"], seen["compiled"], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FEW, ids=lambda a: a.name)
def test_default_compiler_gives_the_answer_of_plain_decoding(architecture: Architecture) -> None:
    plain, settings = decode_plainly(architecture, 20), compiled("inductor")
    ours, _ = decode_with_noisy_oracle(plain, SMALL_TREE, **settings)
    assert_exact(plain, ours, SMALL_TREE[1])
