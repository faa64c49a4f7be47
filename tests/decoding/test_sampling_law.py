"""
Sampling with a draft has exactly the target's law.

The target's law is enumerated: a vocabulary of 7 tokens, answers of 4, so 2401 possible answers, each with the product
of its tokens' processed probabilities. Many answers are then drawn with trees that the draft's own code drafts and the
target's own code verifies, and their counts are compared by Pearson's chi-square (small cells pooled).

**Odds.** A correct implementation fails one comparison with probability 1e-6 (the level); seeds are fixed, so a pass
stays a pass. The same statistic on the same number of answers rejects three wrong rules, the released one among them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicCache

from conftest import GOLDEN_CASES, golden_json, golden_tensors, tiny_llama
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel, GriffinGenerateOutput
from transformers_griffin.decoding import answer
from transformers_griffin.decoding.choice import TokenChooser
from transformers_griffin.decoding.draft_tree import DraftTree, ancestor_mask
from transformers_griffin.decoding.target_forward import TargetForward
from transformers_griffin.decoding.verification import Acceptance, accept_path, walk_path


VOCAB_SIZE, ANSWER_LENGTH = 7, 4
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
LEVEL = 1e-6  # odds of a false alarm, for each comparison
NUM_ANSWERS = 100_000

PROCESSORS: dict[str, dict[str, float]] = {
    "T=0.5": {"temperature": 0.5},
    "T=1.3": {"temperature": 1.3},
    "top-p 0.8": {"top_p": 0.8},
    "repetition penalty 1.3": {"repetition_penalty": 1.3},
    "top-k 3": {"top_k": 3},
    "all": {"repetition_penalty": 1.3, "temperature": 1.3, "top_k": 5, "top_p": 0.9},
}


def processors_of(name: str) -> LogitsProcessorList:
    """transformers' own processors, in the order of `generate()`; a test below holds both against each other."""
    makers: dict[str, Callable] = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }
    return LogitsProcessorList(
        [make(PROCESSORS[name][key]) for key, make in makers.items() if key in PROCESSORS[name]]
    )


# ---------------------------------------------------------------------- the pair and the exact law


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, GriffinDraftModel]:
    """A random target with opinions, and a draft that learned them for 30 steps: it is often right and often wrong."""
    target = tiny_llama(vocab_size=VOCAB_SIZE, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(1)
    for weight in target.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    target.generation_config.update(pad_token_id=0, eos_token_id=None)
    draft = GriffinDraftModel.from_target(target)
    optimizer = torch.optim.Adam(draft.parameters(), lr=1e-2)
    for _ in range(30):
        tokens = after_prompt(torch.randint(0, VOCAB_SIZE, (64, 5)))
        with torch.no_grad():
            outputs = target(tokens, output_hidden_states=True)
        features, wanted = outputs.hidden_states[-1], outputs.logits[:, 1:].softmax(dim=-1)
        guess = draft(input_ids=tokens[:, 1:], features=features[:, :-1])
        logits = draft.compute_logits(guess.predict)
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1)) + mse_loss(guess.regress, features[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    draft.generation_config.update(num_assistant_tokens=7, draft_tree_depth=3, draft_tree_top_k=2)
    return target, draft.eval()


def all_answers(length: int) -> torch.Tensor:
    """All answers of `length` tokens, in the order of `code_of`, shape `(VOCAB_SIZE**length, length)`."""
    return torch.cartesian_prod(*[torch.arange(VOCAB_SIZE)] * length).reshape(-1, length)


def code_of(answers: torch.Tensor) -> torch.Tensor:
    """The number of an answer in `all_answers`."""
    return (answers * VOCAB_SIZE ** torch.arange(answers.shape[1] - 1, -1, -1)).sum(dim=-1)


def after_prompt(answers: torch.Tensor) -> torch.Tensor:
    return torch.cat((PROMPT.expand(answers.shape[0], -1), answers), dim=1)


@torch.no_grad()
def exact_law(target: LlamaForCausalLM, processors: LogitsProcessorList) -> torch.Tensor:
    """The probability of every answer of `ANSWER_LENGTH` tokens under plain sampling, float64."""
    law = torch.ones(1, dtype=torch.float64)
    for length in range(ANSWER_LENGTH):
        prefixes = after_prompt(all_answers(length) if length else torch.empty(1, 0, dtype=torch.long))
        scores = processors(prefixes, target(prefixes).logits[:, -1].float())
        law = (law.unsqueeze(1) * scores.double().softmax(dim=-1)).flatten()
    return law


def odds(counts: torch.Tensor, law: torch.Tensor) -> float:
    """Probability of a chi-square at least as large under `law`; answers expected less than 10 times are one cell."""
    expected = law * counts.sum()
    if (counts[law == 0] > 0).any():
        return 0.0
    is_large = expected >= 10
    cells = torch.cat((expected[is_large], expected[~is_large].sum().reshape(1)))
    found = torch.cat((counts[is_large], counts[~is_large].sum().reshape(1))).double()
    found, cells = found[cells > 0], cells[cells > 0]
    chi_square = ((found - cells) ** 2 / cells).sum()
    degrees = torch.tensor(float(len(cells) - 1), dtype=torch.float64)
    return torch.special.gammaincc(degrees / 2, chi_square / 2).item()


# ---------------------------------------------------------------------- answers drawn with the draft


@dataclass
class Cycle:
    """What one cycle sees after each of the answers of one length: drafted trees, verified by the target."""

    tree: DraftTree
    logits: torch.Tensor


@torch.no_grad()
def run_cycle(pair: tuple[LlamaForCausalLM, GriffinDraftModel], input_ids: torch.Tensor) -> Cycle:
    """Prefill, draft and verify, all rows at once; the last token of each row is the root."""
    target, draft = pair
    length = input_ids.shape[1] - 1
    model_kwargs = {
        "past_key_values": DynamicCache(config=target.config),
        "attention_mask": torch.ones(input_ids.shape[0], length, dtype=torch.long),
        "position_ids": torch.arange(length).unsqueeze(0),
        "use_cache": True,
    }
    forward = TargetForward(target, GenerationConfig(), model_kwargs, max_length=64)
    _, features = forward.prefill(input_ids[:, :-1], take_chunk=lambda _: None)  # one chunk
    tree = GriffinCandidateGenerator(draft).draft_tree(input_ids[:, 1:], features)
    outputs, _ = forward.verify(tree, input_ids)
    return Cycle(tree, outputs.logits)


@pytest.fixture(scope="module")
def cycles(pair) -> list[Cycle]:
    """`cycles[n - 1]` holds the cycles after all answers of n tokens; they depend on no sampling setting."""
    return [run_cycle(pair, after_prompt(all_answers(length))) for length in range(1, ANSWER_LENGTH)]


def select_rows(tree: DraftTree, rows: torch.Tensor) -> DraftTree:
    return DraftTree(*(getattr(tree, field.name)[rows] for field in fields(tree)))


Walk = Callable[[DraftTree, torch.Tensor, torch.Tensor, TokenChooser, int], Acceptance]


@torch.no_grad()
def draw_answers(
    target: LlamaForCausalLM, cycles: list[Cycle], processors: LogitsProcessorList, walk: Walk, seed: int = 0
) -> tuple[torch.Tensor, float]:
    """
    Draws `NUM_ANSWERS` answers as the loop would, those of equal length side by side.

    Returns:
        the counts of all answers, and tau.
    """
    torch.manual_seed(seed)
    chooser = TokenChooser(processors, do_sample=True)
    first = chooser(target(PROMPT).logits[:, -1].expand(NUM_ANSWERS, -1), PROMPT.expand(NUM_ANSWERS, -1))
    longest = ANSWER_LENGTH + cycles[0].tree.tokens.shape[1]
    answers = torch.zeros(NUM_ANSWERS, longest, dtype=torch.long)
    answers[:, 0], lengths = first, torch.ones(NUM_ANSWERS, dtype=torch.long)
    num_cycles = num_emitted = 0
    for length, cycle in enumerate(cycles, start=1):
        rows = (lengths == length).nonzero().flatten()
        so_far = answers[rows, :length]
        code = code_of(so_far)
        path_length = int(cycle.tree.depths.max()) + 1
        accepted = walk(select_rows(cycle.tree, code), cycle.logits[code], after_prompt(so_far), chooser, path_length)
        for step in range(path_length):
            answers[rows, length + step] = accepted.tokens[:, step]  # what is behind the path is overwritten later
        lengths[rows] += accepted.lengths
        num_cycles, num_emitted = num_cycles + len(rows), num_emitted + int(accepted.lengths.sum())
    counts = code_of(answers[:, :ANSWER_LENGTH]).bincount(minlength=VOCAB_SIZE**ANSWER_LENGTH)
    return counts, num_emitted / num_cycles


def our_walk(tree, logits, input_ids, choose, path_length) -> Acceptance:
    return walk_path(tree, logits, input_ids, choose, path_length, ask_host=False)


def our_careful_walk(tree, logits, input_ids, choose, path_length) -> Acceptance:
    return walk_path(tree, logits, input_ids, choose, path_length, ask_host=True)


def our_choice_at_all_nodes(tree, logits, input_ids, choose, path_length) -> Acceptance:
    return accept_path(tree, choose.at_all_nodes(tree.tokens, logits), path_length)


@pytest.mark.parametrize("name", PROCESSORS)
def test_answers_have_the_law_of_the_target(pair, cycles, name):
    """100,000 answers for each setting; a cycle emits two to three of the four tokens that it could emit."""
    target, _ = pair
    processors = processors_of(name)
    counts, tau = draw_answers(target, cycles, processors, our_walk)
    assert 1.5 < tau < 3.5  # 1 would be no draft accepted, 4 all of them
    assert odds(counts, exact_law(target, processors)) > LEVEL


@pytest.mark.parametrize("name", ["T=0.5", "T=1.3", "top-k 3"])
def test_choices_at_all_nodes_have_the_law_of_the_target(pair, cycles, name):
    """One call for all nodes instead of one for each node of the path."""
    target, _ = pair
    processors = processors_of(name)
    assert TokenChooser(processors, do_sample=True).can_choose_at_all_nodes
    counts, tau = draw_answers(target, cycles, processors, our_choice_at_all_nodes, seed=2)
    assert 1.5 < tau < 3.5
    assert odds(counts, exact_law(target, processors)) > LEVEL


@pytest.mark.parametrize("name", ["top-p 0.8", "repetition penalty 1.3", "all"])
def test_who_sorts_or_sees_the_prefix_is_asked_along_the_path(name):
    assert not TokenChooser(processors_of(name), do_sample=True).can_choose_at_all_nodes


def test_the_walk_that_asks_the_host_has_the_law_of_the_target(pair, cycles):
    target, _ = pair
    processors = processors_of("all")
    counts, _ = draw_answers(target, cycles, processors, our_careful_walk, seed=1)
    assert odds(counts, exact_law(target, processors)) > LEVEL


# ---------------------------------------------------------------------- wrong rules are found out


def wrong_walk(tree, logits, input_ids, choose, path_length, bonus, choose_prefix=None) -> Acceptance:
    """
    A walk that draws its last token by another rule.

    `bonus(choose, node_logits, prefix, token, is_leaf)` replaces the token that left the tree.
    """
    rows = torch.arange(tree.tokens.shape[0])
    node, walking = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
    prefix, nodes, tokens, lengths = input_ids, [], [], torch.zeros_like(rows)
    for _ in range(path_length):
        children = (tree.parents == node.unsqueeze(1)) & (torch.arange(tree.tokens.shape[1]) > 0)
        token = choose(logits[rows, node], prefix if choose_prefix is None else choose_prefix)
        is_child = children & (tree.tokens == token.unsqueeze(1))
        stays = is_child.any(dim=1)
        token = torch.where(stays, token, bonus(choose, logits[rows, node], prefix, token, ~children.any(dim=1)))
        nodes.append(node)
        tokens.append(torch.where(walking, token, tokens[-1]) if tokens else token)
        lengths = lengths + walking
        walking = walking & stays
        node = torch.where(walking, is_child.long().argmax(dim=1), node)
        prefix = torch.cat((prefix, token.unsqueeze(1)), dim=1)
    return Acceptance(torch.stack(nodes, dim=1), torch.stack(tokens, dim=1), lengths)


def keep_token(choose, node_logits, prefix, token, is_leaf) -> torch.Tensor:
    return token


def unwarped_at_leaves(choose, node_logits, prefix, token, is_leaf) -> torch.Tensor:
    """The released code: behind a leaf the bonus comes from the target's raw logits."""
    raw = torch.multinomial(node_logits.softmax(dim=-1), num_samples=1).squeeze(1)
    return torch.where(is_leaf, raw, token)


def drawn_again(choose, node_logits, prefix, token, is_leaf) -> torch.Tensor:
    """After the rejection of all children, a fresh sample that may be one of them."""
    return choose(node_logits, prefix)


def wrong_at_leaves(tree, logits, input_ids, choose, path_length, *_) -> Acceptance:
    return wrong_walk(tree, logits, input_ids, choose, path_length, unwarped_at_leaves)


def wrong_resampling(tree, logits, input_ids, choose, path_length, *_) -> Acceptance:
    return wrong_walk(tree, logits, input_ids, choose, path_length, drawn_again)


def wrong_prefix(tree, logits, input_ids, choose, path_length) -> Acceptance:
    """Processors see the sequence up to the root at every node."""
    return wrong_walk(tree, logits, input_ids, choose, path_length, keep_token, choose_prefix=input_ids)


def test_the_scaffold_of_the_wrong_rules_is_right(pair, cycles):
    """With the right bonus the wrong walks would pass: it is the rule that the statistic finds, not the scaffold."""

    def right_walk(*args) -> Acceptance:
        return wrong_walk(*args, bonus=keep_token)

    processors = processors_of("all")
    counts, _ = draw_answers(pair[0], cycles, processors, right_walk)
    expected, _ = draw_answers(pair[0], cycles, processors, our_walk)
    assert torch.equal(counts, expected)


@pytest.mark.parametrize(
    ("walk", "name"),
    [
        (wrong_at_leaves, "T=0.5"),
        (wrong_at_leaves, "top-p 0.8"),
        (wrong_resampling, "T=0.5"),
        (wrong_resampling, "T=1.3"),
        (wrong_prefix, "repetition penalty 1.3"),
    ],
)
def test_wrong_rules_do_not_have_the_law_of_the_target(pair, cycles, walk, name):
    """Same statistic, same 100,000 answers: odds below 1e-30."""
    processors = processors_of(name)
    counts, _ = draw_answers(pair[0], cycles, processors, walk)
    assert odds(counts, exact_law(pair[0], processors)) < 1e-30


# ---------------------------------------------------------------------- generate()


@torch.no_grad()
def surprise(target: LlamaForCausalLM, processors: LogitsProcessorList, sequences: torch.Tensor) -> float:
    """
    How much more surprising the answers are than the target's law makes them, in standard deviations.

    Each token adds -log p(token) less its mean, the entropy of p; under the law the sum is a martingale and, divided
    by its standard deviation, close to normal. A token of probability 0 is infinitely surprising.
    """
    excess = variance = 0.0
    for sequence in sequences:
        all_logits = target(sequence[None]).logits[0].float()
        for position in range(PROMPT.shape[1], len(sequence)):
            scores = processors(sequence[None, :position], all_logits[None, position - 1].clone())
            p = scores[0].double().softmax(dim=-1)
            information = torch.where(p > 0, -p.log(), 0.0)
            entropy = (p * information).sum()
            excess += -p[sequence[position]].log() - entropy
            variance += (p * (information - entropy) ** 2).sum()
    return float(excess / variance**0.5)


def generate_long(pair, name: str, count: int, num_tokens: int = 100) -> tuple[torch.Tensor, float]:
    """`count` answers of `generate()` with the draft, of shape `(count, length)`, and tau."""
    target, draft = pair
    torch.manual_seed(0)
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0} | PROCESSORS[name]
    outputs = [
        target.generate(
            PROMPT,
            assistant_model=draft,
            do_sample=True,
            max_new_tokens=num_tokens,
            return_dict_in_generate=True,
            **settings,
        )
        for _ in range(count)
    ]
    lengths = torch.tensor([length for output in outputs for length in output.acceptance_lengths[0]])
    return torch.cat([output.sequences for output in outputs]), lengths.double().mean().item()


BOUND = 4.9  # standard deviations: odds of 1e-6, both sides together


@pytest.mark.parametrize("name", ["T=0.5", "T=1.3", "top-p 0.8", "all"])
def test_generate_is_as_surprising_as_the_target(pair, name):
    """500 tokens of `generate()`, each held against the target's distribution after the tokens before it."""
    sequences, tau = generate_long(pair, name, count=5)
    assert 1.5 < tau < 3.5
    assert abs(surprise(pair[0], processors_of(name), sequences)) < BOUND


def test_generate_is_as_surprising_as_the_target_with_a_depth_that_adapts(pair, monkeypatch):
    """What was sampled decides how deep the next tree is, and must not thereby decide what is sampled next."""
    monkeypatch.setattr(pair[1].generation_config, "draft_level_cost", 0.3, raising=False)
    depths = []
    draft_tree = GriffinCandidateGenerator.draft_tree
    monkeypatch.setattr(
        GriffinCandidateGenerator,
        "draft_tree",
        lambda self, *a, **k: depths.append(self.depth) or draft_tree(self, *a, **k),
    )
    sequences, tau = generate_long(pair, "T=0.5", count=5)
    assert len(set(depths)) >= 2
    assert 1.2 < tau < 3.5
    assert abs(surprise(pair[0], processors_of("T=0.5"), sequences)) < BOUND


def test_the_released_rule_in_generate_is_found_out(pair, monkeypatch):
    """The same statistic of the same 500 tokens, with the released rule in the loop: tokens that top-p excludes."""
    monkeypatch.setattr(answer, "walk_path", wrong_at_leaves)
    sequences, _ = generate_long(pair, "top-p 0.8", count=5)
    assert surprise(pair[0], processors_of("top-p 0.8"), sequences) > BOUND


class Unchanged(LogitsProcessor):
    """A user's own processor: nobody knows that it does nothing, so all rows advance in step."""

    def __call__(self, input_ids, scores):
        return scores


def generate_batch(pair, name: str, num_rows: int, num_tokens: int, **kwargs) -> GriffinGenerateOutput:
    """`num_rows` answers to the same prompt, side by side, with the tree that a single prompt gets."""
    target, draft = pair
    draft.generation_config.draft_tree_batch_size = num_rows
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0} | PROCESSORS[name] | kwargs
    return target.generate(
        PROMPT,
        assistant_model=draft,
        num_return_sequences=num_rows,
        do_sample=True,
        max_new_tokens=num_tokens,
        return_dict_in_generate=True,
        **settings,
    )


@pytest.mark.parametrize(("name", "num_rows", "num_calls"), [("T=1.3", 3000, 2), ("all", 400, 3)])
def test_answers_of_a_batch_have_the_law_of_the_target(pair, name, num_rows, num_calls):
    """Each row at its own pace; with a repetition penalty processors are asked about each row by itself."""
    torch.manual_seed(0)
    outputs = [generate_batch(pair, name, num_rows, ANSWER_LENGTH) for _ in range(num_calls)]
    assert {len(cycles) for output in outputs for cycles in output.acceptance_lengths} == {1, 2, 3}
    answers = torch.cat([output.sequences[:, PROMPT.shape[1] :] for output in outputs])
    counts = code_of(answers).bincount(minlength=VOCAB_SIZE**ANSWER_LENGTH)
    assert odds(counts, exact_law(pair[0], processors_of(name))) > LEVEL


def test_answers_have_the_law_of_the_target_beside_a_longer_prompt(pair):
    """1,200 padded rows beside as many of another prompt, which accept other numbers of tokens, three times."""
    target, draft = pair
    draft.generation_config.draft_tree_batch_size = 2400
    longer = torch.tensor([[2, 6, 0, 3, 5, 2, 6, 1, 1]])
    padding = (longer.shape[1] - PROMPT.shape[1], 0)
    inputs = torch.cat((torch.nn.functional.pad(PROMPT, padding), longer))
    mask = torch.cat((torch.nn.functional.pad(torch.ones_like(PROMPT), padding), torch.ones_like(longer)))
    torch.manual_seed(0)
    answers = [
        target.generate(
            inputs,
            attention_mask=mask,
            assistant_model=draft,
            num_return_sequences=1200,
            do_sample=True,
            temperature=1.3,
            top_k=0,
            max_new_tokens=ANSWER_LENGTH,
        )
        for _ in range(3)
    ]
    new = torch.cat([answer[:, longer.shape[1] :] for answer in answers])
    is_ours = torch.tensor([True, False]).repeat_interleave(1200).repeat(3)
    counts = code_of(new[is_ours]).bincount(minlength=VOCAB_SIZE**ANSWER_LENGTH)
    law = exact_law(target, processors_of("T=1.3"))
    assert odds(counts, law) > LEVEL
    others = code_of(new[~is_ours]).bincount(minlength=VOCAB_SIZE**ANSWER_LENGTH)
    assert odds(others, law) < LEVEL  # another prompt has another law, or the comparison would prove nothing


def test_rows_that_advance_in_step_have_the_law_of_the_target(pair):
    """400 tokens of four rows, of which a cycle keeps as many as the least lucky row accepts."""
    torch.manual_seed(0)
    outputs = [generate_batch(pair, "all", 4, 100, logits_processor=[Unchanged()])]
    cycles = outputs[0].acceptance_lengths
    assert cycles[0] == cycles[1] == cycles[2]
    assert max(cycles[0]) > 1
    sequences = torch.cat([output.sequences for output in outputs])
    assert abs(surprise(pair[0], processors_of("all"), sequences)) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_answers_of_generate_have_the_law_of_the_target(pair, name):
    """4000 whole answers of `generate()`, odds of a false alarm 1e-6."""
    answers, _ = generate_long(pair, name, count=4000, num_tokens=ANSWER_LENGTH)
    counts = code_of(answers[:, PROMPT.shape[1] :]).bincount(minlength=VOCAB_SIZE**ANSWER_LENGTH)
    assert odds(counts, exact_law(pair[0], processors_of(name))) > LEVEL


# ---------------------------------------------------------------------- the released walks, without their mistake


def golden_tree(sampling: dict) -> DraftTree:
    """The tree of a golden sampling fixture, from its root paths (right-padded with -1)."""
    tokens = torch.tensor([sampling["draft_tokens"]])
    parents = torch.zeros_like(tokens)
    for path in sampling["retrieve_indices"]:
        for parent, child in pairwise(node for node in path if node >= 0):
            parents[0, child] = parent
    ancestors = ancestor_mask(parents, depth=tokens.shape[1])
    return DraftTree(tokens, parents, ancestors.sum(dim=-1) - 1, ancestors, torch.zeros(tokens.shape))


class ReleasedChoice:
    """
    Chooses as the released code does: it tries a node's children one after the other, and takes child token v if a
    uniform draw is at most p(v), else sets p(v) to 0 and renormalises p. What remains is the law of the bonus token.
    """

    def __init__(self, tree: DraftTree, prompt_length: int, run: dict):
        self.tokens, self.parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        self.prompt_length = prompt_length
        self.processors = LogitsProcessorList([TemperatureLogitsWarper(run["temperature"])])
        if run["top_p"] > 0:
            self.processors.append(TopPLogitsWarper(run["top_p"]))
        self.draws = list(run["uniforms"])
        self.last_p = torch.empty(0)

    def children(self, node: int) -> list[int]:
        return [n for n in range(1, len(self.tokens)) if self.parents[n] == node]

    def __call__(self, logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        node = 0
        for token in prefix[0, self.prompt_length :].tolist():
            (node,) = [n for n in self.children(node) if self.tokens[n] == token]
        self.last_p = self.processors(prefix, logits.clone()).softmax(dim=-1)[0]
        for token in [self.tokens[n] for n in self.children(node)]:
            if self.draws.pop(0) <= self.last_p[token]:
                return torch.tensor([token])
            self.last_p[token] = 0.0
            self.last_p /= self.last_p.sum()
        return self.last_p.argmax()[None]


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_released_draws_walk_the_released_path(case):
    """
    With the recorded draws the walk takes the recorded path, and the law of its bonus token is the recorded one: at a
    leaf the corrected one, since the released code forgets temperature and top-p there.
    """
    sampling, tensors = golden_json(case, "sampling"), golden_tensors(case, "sampling")
    tree, prompt = golden_tree(sampling), torch.tensor([[*sampling["prompt_ids"], sampling["root_token"]]])
    for number, run in enumerate(sampling["runs"]):
        choose = ReleasedChoice(tree, prompt.shape[1], run)
        accepted = walk_path(tree, tensors["node_logits"][None], prompt, choose, path_length=5, ask_host=True)
        assert accepted.lengths[0] == run["accept_length"] + 1
        assert accepted.nodes[0, : accepted.lengths[0]].tolist() == run["accepted_nodes"]
        assert choose.draws == []
        expected = tensors.get(f"run{number}.corrected_sample_p", tensors[f"run{number}.official_sample_p"])
        torch.testing.assert_close(choose.last_p, expected.flatten(), atol=1e-6, rtol=0)
    assert any(run["official_differs_from_corrected"] for run in sampling["runs"])
