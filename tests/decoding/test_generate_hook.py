"""The hook: installed once, removable, and invisible to everything that is not a GRIFFIN draft."""

import functools
import re

import pytest
import torch
from generation_helpers import assert_lossless, generate_both, golden_pair, golden_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationMixin, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version
from transformers.utils import logging

from conftest import tiny_llama
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.decoding import generate_hook


PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])


@pytest.fixture
def hook():
    """Leaves the hook installed, whatever the test did."""
    yield generate_hook
    generate_hook.install()


@pytest.fixture
def pair():
    return golden_pair()


# ---------------------------------------------------------------------- installing


def test_importing_the_package_installs_the_hook():
    assert generate_hook.is_installed()


def test_second_install_changes_nothing(hook):
    before = {name: getattr(GenerationMixin, name) for name in hook.SEAMS}
    hook.install()
    assert {name: getattr(GenerationMixin, name) for name in hook.SEAMS} == before


def test_removal_puts_the_original_methods_back(hook):
    originals = {name: getattr(GenerationMixin, name).__wrapped__ for name in hook.SEAMS}
    hook.remove()
    assert not hook.is_installed()
    assert {name: getattr(GenerationMixin, name) for name in hook.SEAMS} == originals
    assert all(method.__module__ == "transformers.generation.utils" for method in originals.values())
    hook.remove()  # a second time: nothing happens
    assert {name: getattr(GenerationMixin, name) for name in hook.SEAMS} == originals
    hook.install()
    assert hook.is_installed()


def test_without_the_hook_a_draft_says_what_it_needs(hook, pair):
    target, draft = pair
    hook.remove()
    with pytest.raises(RuntimeError, match="pip install transformers-griffin"):
        target.generate(golden_prompts()[0], assistant_model=draft, max_new_tokens=4)


def test_wrapped_methods_keep_name_and_documentation():
    for name in generate_hook.SEAMS:
        method = getattr(GenerationMixin, name)
        assert method.__name__ == name
        assert method.__doc__ == method.__wrapped__.__doc__


@pytest.mark.parametrize("name", generate_hook.SEAMS)
def test_changed_seam_is_reported_when_the_hook_is_installed(hook, monkeypatch, name):
    """A method with other parameters is found before any answer is begun, and nothing is wrapped."""
    hook.remove()

    def changed(self, input_ids, something_new, **model_kwargs):
        raise NotImplementedError

    others = {other: getattr(GenerationMixin, other) for other in hook.SEAMS if other != name}
    monkeypatch.setattr(GenerationMixin, name, changed)
    message = (
        f"transformers {transformers_version} changed `GenerationMixin.{name}`: expected the parameters "
        f"{', '.join(hook.SEAMS[name])}, found self, input_ids, something_new, model_kwargs. Install "
        "transformers>=5.23,<6, or a transformers-griffin that knows this version."
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        hook.install()
    assert not hook.is_installed()
    assert GenerationMixin.__dict__[name] is changed
    assert all(getattr(GenerationMixin, other) is method for other, method in others.items())


# ---------------------------------------------------------------------- what is not a draft goes by


def word_tokenizer(vocab_size: int, prefix: str) -> PreTrainedTokenizerFast:
    """Token i is the word <prefix><i>."""
    vocab = {f"{prefix}{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=f"{prefix}0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=f"{prefix}0", eos_token=f"{prefix}1")


# Universal assisted *sampling* is left out: stock transformers 5.23 fails where one vocabulary contains the other.
STOCK_MODES = {
    "greedy": dict,
    "sampling": lambda: {"do_sample": True},
    "beams": lambda: {"num_beams": 3},
    "beam_sampling": lambda: {"num_beams": 3, "do_sample": True},
    "prompt_lookup": lambda: {"prompt_lookup_num_tokens": 3},
    "prompt_lookup_sampling": lambda: {"prompt_lookup_num_tokens": 3, "do_sample": True},
    "assisted": lambda: {"assistant_model": tiny_llama(seed=1, num_hidden_layers=1)},
    "assisted_by_itself": lambda: {"assistant_model": tiny_llama()},
    "assisted_sampling": lambda: {"assistant_model": tiny_llama(seed=1, num_hidden_layers=1), "do_sample": True},
    "early_exit": lambda: {"assistant_early_exit": 1},
    "universal_assisted": lambda: {
        "assistant_model": tiny_llama(seed=1, vocab_size=47),
        "tokenizer": word_tokenizer(61, "w"),
        "assistant_tokenizer": word_tokenizer(47, "w"),
    },
}


@pytest.fixture
def own_warnings_of_transformers():
    """Transformers' assisted decoding passes its assistant arguments that it calls deprecated itself."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.mark.usefixtures("own_warnings_of_transformers")
@pytest.mark.parametrize("name", STOCK_MODES)
def test_stock_modes_give_the_same_answers_with_and_without_the_hook(hook, name):
    """Scores included; the greedy ones equal plain greedy decoding besides."""
    target = tiny_llama()
    outputs = []
    for with_hook in (True, False):
        (hook.install if with_hook else hook.remove)()
        torch.manual_seed(0)
        settings = {"max_new_tokens": 14, "pad_token_id": 0} | STOCK_MODES[name]()
        settings = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True} | settings
        outputs.append(target.generate(PROMPT, **settings))
    ours, stock = outputs
    assert type(ours) is type(stock)
    assert ours.sequences.tolist() == stock.sequences.tolist()
    assert all(torch.equal(a, b) for a, b in zip(ours.scores, stock.scores, strict=True))
    if not settings["do_sample"] and "num_beams" not in settings:
        plain = target.generate(PROMPT, max_new_tokens=14, do_sample=False, pad_token_id=0)
        assert ours.sequences.tolist() == plain.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_mtp": True},
        {"speculation_type": "dflash"},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_early_exit": 1},
        {},
    ],
    ids=str,
)
def test_every_other_call_reaches_the_method_of_transformers_as_it_is(hook, monkeypatch, settings):
    """Also for MTP and DFlash, which need models of their own: the method gets what `generate()` passes on."""
    hook.remove()
    original, calls = GenerationMixin._assisted_decoding, []

    @functools.wraps(original)
    def spy(self, input_ids, **kwargs):
        calls.append(kwargs)
        return input_ids

    assistant = tiny_llama(seed=1)
    if settings.get("speculation_type") == "dflash" or not settings:
        settings = settings | {"assistant_model": assistant}
    target, passed_on = tiny_llama(), []
    for with_hook in (False, True):
        monkeypatch.setattr(GenerationMixin, "_assisted_decoding", spy)
        if with_hook:
            hook.install()
        answer = target.generate(PROMPT, max_new_tokens=4, do_sample=False, **settings)
        hook.remove()
        assert answer.tolist() == PROMPT.tolist()
        passed_on.append({name: value for name, value in calls.pop().items() if name != "generation_config"})
    assert calls == []
    assert passed_on[0].keys() == passed_on[1].keys()
    assert passed_on[1].get("assistant_model") is settings.get("assistant_model")


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("assisted generate requires `use_cache=True`", {"use_cache": False}),
        ("num_return_sequences has to be 1", {"num_return_sequences": 2, "do_sample": True}),
        ("not supported with Static cache", {"cache_implementation": "static"}),
    ],
)
def test_stock_assisted_decoding_keeps_its_own_errors(message, settings):
    with pytest.raises(ValueError, match=message):
        tiny_llama().generate(PROMPT, assistant_model=tiny_llama(seed=1), max_new_tokens=4, **settings)


def test_stock_modes_still_work_on_a_target_that_decoded_with_a_draft(pair):
    """A draft leaves nothing behind in the target: neither hooks nor settings nor attention implementation."""
    target, draft = pair
    prompt = golden_prompts()[0]
    config, implementation = target.generation_config.to_dict(), target.config._attn_implementation
    before = target.generate(prompt, max_new_tokens=20, do_sample=False)
    with_draft = target.generate(prompt, assistant_model=draft, max_new_tokens=20, do_sample=False)
    after = target.generate(prompt, max_new_tokens=20, do_sample=False)
    assert before.tolist() == with_draft.tolist() == after.tolist()
    assert target.generation_config.to_dict() == config
    assert target.config._attn_implementation == implementation
    assert not any(module._forward_hooks for module in target.modules())


def test_hooks_are_taken_off_the_target_when_a_run_fails(pair):
    target, draft = pair

    def fail(batch_id: int, prefix: torch.Tensor) -> list[int]:
        raise KeyError("the user's function fails")

    with pytest.raises(KeyError):
        target.generate(golden_prompts()[0], assistant_model=draft, prefix_allowed_tokens_fn=fail, max_new_tokens=8)
    assert not any(module._forward_hooks for module in target.modules())


def test_one_draft_serves_two_targets_in_turn(pair):
    """The draft borrows embedding and head of the target that it was last passed to."""
    target, draft = pair
    other, _ = golden_pair()
    torch.nn.init.normal_(other.lm_head.weight, std=0.3)
    prompt, settings = golden_prompts()[0], {"max_new_tokens": 12, "do_sample": False}
    answers = []
    for each in (target, other, target):
        answers.append(each.generate(prompt, assistant_model=draft, **settings).tolist())
        assert answers[-1] == each.generate(prompt, **settings).tolist()
    assert answers[0] == answers[2] != answers[1]


# ---------------------------------------------------------------------- transformers' own loop


@pytest.fixture
def stock_loop(hook, monkeypatch, pair):
    """Transformers' assisted decoding, which asks a [`GriffinCandidateGenerator`] for candidates."""
    target, draft = pair
    generators = []

    def candidate_generator(self, **kwargs):
        generators.append(GriffinCandidateGenerator(draft))
        return generators[-1]

    hook.remove()
    monkeypatch.setattr(GenerationMixin, "_get_candidate_generator", candidate_generator)
    return target, generators


@pytest.mark.parametrize(
    "settings",
    [{}, {"eos_token_id": 374}, {"max_new_tokens": 17}, {"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 1}],
    ids=str,
)
def test_stock_loop_with_our_candidates_is_lossless(stock_loop, settings):
    """Four prompts; fewer target forwards than tokens show that drafted tokens are accepted."""
    target, generators = stock_loop
    forwards = []
    target.model.register_forward_hook(lambda *_: forwards.append(1))
    for prompt in golden_prompts():
        settings = {"max_new_tokens": 40, "do_sample": False} | settings
        plain = target.generate(prompt, **settings)
        forwards.clear()
        # Any assistant selects the mode; the candidates are ours.
        assisted = target.generate(prompt, assistant_model=target, **settings)
        assert assisted.tolist() == plain.tolist()
        assert len(forwards) < plain.shape[1] - prompt.shape[1]
    assert len(generators) == len(golden_prompts())


def test_stock_loop_accepts_what_our_chain_accepts(stock_loop, hook, pair):
    """
    The best path of a chain is the chain: with width 1 the stock loop's forwards are our cycles, and the prefill that
    drafts nothing.
    """
    target, _ = stock_loop
    draft = pair[1]
    draft.generation_config.update(num_assistant_tokens=4, draft_tree_depth=4, draft_tree_top_k=1)
    forwards = []
    handle = target.model.register_forward_hook(lambda *_: forwards.append(1))
    prompt = golden_prompts()[0]
    target.generate(prompt, assistant_model=target, max_new_tokens=40, do_sample=False)
    handle.remove()
    hook.install()
    plain, ours = generate_both(pair, prompt)
    assert_lossless(plain, ours, prompt.shape[1])
    assert len(forwards) == 1 + len(ours.acceptance_lengths[0])


def test_generator_is_a_candidate_generator_of_transformers():
    from transformers.generation.candidate_generator import CandidateGenerator

    target = tiny_llama()
    generator = GriffinCandidateGenerator(GriffinDraftModel.from_target(target))
    assert isinstance(generator, CandidateGenerator)
    candidates, logits = generator.get_candidates(PROMPT)
    assert candidates.tolist() == PROMPT.tolist()
    assert logits is None
