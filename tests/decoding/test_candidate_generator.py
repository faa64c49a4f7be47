"""The draft grows the tree that a slow draft without cache, mask or batch would grow, whatever was drafted before."""

import logging

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from conftest import golden_case, tiny_llama
from transformers_griffin import GriffinCandidateGenerator, GriffinDraftModel
from transformers_griffin.decoding.draft_tree import DraftTree


HIDDEN_SIZE, VOCAB_SIZE = 32, 61


def random_draft(seed: int = 0, **config_overrides) -> GriffinDraftModel:
    """
    A draft with large random weights, so that its opinions differ from node to node, bound to a random target.

    In float64: its regress features are fed back up to 16 times, which in float32 would blow up rounding errors.
    """
    target = tiny_llama(seed).double()
    torch.nn.init.normal_(target.lm_head.weight, std=0.2)
    draft = GriffinDraftModel.from_target(target, **config_overrides).eval()
    for weight in draft.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return draft


def generator_of(
    draft: GriffinDraftModel, nodes: int = 12, depth: int = 4, top_k: int = 3
) -> GriffinCandidateGenerator:
    settings = GenerationConfig(num_assistant_tokens=nodes, draft_tree_depth=depth, draft_tree_top_k=top_k)
    return GriffinCandidateGenerator(draft, settings)


def random_pairs(length: int, batch_size: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and features; what the draft reads need not come from a target."""
    torch.manual_seed(seed)
    features = torch.randn(batch_size, length, HIDDEN_SIZE, dtype=torch.float64)
    return torch.randint(0, VOCAB_SIZE, (batch_size, length)), features


def assert_same_tree(found: DraftTree, expected: DraftTree, atol: float = 1e-6) -> None:
    """Equal structure and tokens; scores are float32 sums, of which the last digit may differ."""
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.parents, expected.parents)
    assert torch.equal(found.depths, expected.depths)
    assert torch.equal(found.ancestors, expected.ancestors)
    torch.testing.assert_close(found.scores, expected.scores, atol=atol, rtol=1e-6)


def row_of(tree: DraftTree, row: int) -> DraftTree:
    rows = slice(row, row + 1)
    return DraftTree(tree.tokens[rows], tree.parents[rows], tree.depths[rows], tree.ancestors[rows], tree.scores[rows])


# ---------------------------------------------------------------------- growing


@torch.no_grad()
def grow_slowly(
    draft: GriffinDraftModel, tokens: torch.Tensor, features: torch.Tensor, nodes: int, depth: int, k: int
):
    """
    The tree as (token, parent, score) lists: every candidate is a path of its own, read from the start.

    No cache, no tree mask, no batch. A path node reads the regress output at its parent, which for level 1 is the last
    verified pair.
    """

    def read(path_tokens: list[int], path_features: list[torch.Tensor]) -> tuple[list[int], list[float], torch.Tensor]:
        all_tokens = torch.cat((tokens, torch.tensor([path_tokens], dtype=torch.long)), dim=1)
        all_features = torch.cat((features, *[f[None, None] for f in path_features]), dim=1)
        output = draft(input_ids=all_tokens, features=all_features)
        log_probs = draft.compute_logits(output.predict)[0, -1].log_softmax(dim=-1)
        best = sorted(range(VOCAB_SIZE), key=lambda token: -log_probs[token].item())[:k]
        return best, [log_probs[token].item() for token in best], output.regress[0, -1]

    pool: list[tuple[int, int, float]] = []  # token, pool index of the parent, score

    def add_children(
        parent: int, score: float, path_tokens: list[int], path_features: list[torch.Tensor]
    ) -> list[dict]:
        children, log_probs, regress = read(path_tokens, path_features)
        new = []
        for token, log_prob in zip(children, log_probs, strict=True):
            pool.append((token, parent, score + log_prob))
            new.append(
                {
                    "index": len(pool) - 1,
                    "score": score + log_prob,
                    "tokens": [*path_tokens, token],
                    "features": [*path_features, regress],
                }
            )
        return new

    beam = add_children(-1, 0.0, [], [])
    for _ in range(depth - 1):
        proposed = [new for b in beam for new in add_children(b["index"], b["score"], b["tokens"], b["features"])]
        beam = sorted(proposed, key=lambda new: -new["score"])[:k]
    kept = sorted(sorted(range(len(pool)), key=lambda index: -pool[index][2])[:nodes])
    node_of = {-1: 0} | {index: node for node, index in enumerate(kept, start=1)}
    return [(pool[index][0], node_of[pool[index][1]], pool[index][2]) for index in kept]


@pytest.mark.parametrize(("nodes", "depth", "top_k"), [(12, 4, 3), (5, 1, 7), (4, 4, 1), (20, 6, 2), (3, 3, 4)])
@pytest.mark.parametrize("overrides", [{}, {"dual_head": False, "fusion": "concat"}, {"num_hidden_layers": 2}])
def test_tree_is_the_one_that_reading_every_path_alone_grows(nodes, depth, top_k, overrides):
    """Two rows of a batch against two slow trees; depth 1, chains and trees smaller than a level among them."""
    draft = random_draft(**overrides)
    tokens, features = random_pairs(length=6, batch_size=2)
    tree = generator_of(draft, nodes, depth, top_k).draft_tree(tokens, features)
    assert tree.tokens.shape == (2, nodes + 1)
    for row in range(2):
        expected = grow_slowly(draft, tokens[row, None], features[row, None], nodes, depth, top_k)
        assert tree.tokens[row].tolist() == [tokens[row, -1].item()] + [token for token, _, _ in expected]
        assert tree.parents[row].tolist() == [0] + [parent for _, parent, _ in expected]
        assert tree.scores[row, 1:].tolist() == pytest.approx([score for _, _, score in expected], abs=1e-5)


# ---------------------------------------------------------------------- the cache between rounds

ROUNDS = [7, 1, 3, 2, 1, 5]  # pairs verified before each round


@pytest.mark.parametrize(("nodes", "depth", "top_k"), [(12, 4, 3), (4, 1, 4), (5, 5, 1)])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_drafting_on_the_cache_equals_drafting_from_scratch(nodes, depth, top_k, num_layers):
    """After each round the cache holds the verified pairs alone: a fresh generator finds the same tree."""
    draft = random_draft(num_hidden_layers=num_layers)
    tokens, features = random_pairs(sum(ROUNDS))
    generator = generator_of(draft, nodes, depth, top_k)
    read = 0
    for num_new in ROUNDS:
        tree = generator.draft_tree(tokens[:, read : read + num_new], features[:, read : read + num_new])
        read += num_new
        assert generator.cache.get_seq_length() == read
        assert tree.tokens.shape == (1, nodes + 1)
        assert_same_tree(
            tree, generator_of(draft, nodes, depth, top_k).draft_tree(tokens[:, :read], features[:, :read])
        )


@torch.no_grad()
def test_cache_keeps_only_verified_pairs():
    """Entry by entry the cache is that of one pass over the verified pairs; no tree ever left a trace."""
    draft = random_draft()
    tokens, features = random_pairs(9)
    generator = generator_of(draft)
    for start, end in ((0, 4), (4, 5), (5, 9)):
        generator.draft_tree(tokens[:, start:end], features[:, start:end])
    cache = DynamicCache(config=draft.config)
    draft(input_ids=tokens, features=features, past_key_values=cache)
    assert generator.cache.get_seq_length() == 9
    torch.testing.assert_close(generator.cache.layers[0].keys, cache.layers[0].keys)
    torch.testing.assert_close(generator.cache.layers[0].values, cache.layers[0].values)


def test_cache_forgets_nothing_although_the_config_names_a_sliding_window():
    """The draft's attention has no window, so neither has its cache: 5, 7 and 9 pairs are more than 4."""
    plain, windowed = generator_of(random_draft()), generator_of(random_draft(sliding_window=4))
    tokens, features = random_pairs(9)
    for start, end in ((0, 5), (5, 7), (7, 9)):
        new = tokens[:, start:end], features[:, start:end]
        assert_same_tree(windowed.draft_tree(*new), plain.draft_tree(*new))


# ---------------------------------------------------------------------- padding and batches


def pad_left(tokens: torch.Tensor, features: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Padding in front, with features that would poison whatever reads them, and its mask."""
    rows = tokens.shape[0]
    mask = torch.cat((torch.zeros(rows, count), torch.ones(tokens.shape)), dim=1).long()
    poison = torch.full((rows, count, HIDDEN_SIZE), torch.nan, dtype=torch.float64)
    padding = torch.zeros(rows, count, dtype=torch.long)
    return torch.cat((padding, tokens), dim=1), torch.cat((poison, features), dim=1), mask


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_left_padding_changes_nothing(implementation, num_layers):
    """
    Neither in the first round nor in later ones, which bring no padding of their own.

    In float32, since transformers' eager masks make NaN of a padded float64 row; hence the wider tolerance.
    """
    draft = random_draft(num_hidden_layers=num_layers, attn_implementation=implementation).float()
    tokens, features = random_pairs(8)
    plain, padded = generator_of(draft), generator_of(draft)
    for start, end in ((0, 5), (5, 8)):
        new = tokens[:, start:end], features[:, start:end]
        expected = plain.draft_tree(*new)
        found = padded.draft_tree(*(pad_left(*new, count=3) if start == 0 else new))
        assert_same_tree(found, expected, atol=1e-4)


def test_rows_of_a_batch_are_drafted_as_if_alone():
    """Prompts of 4 and 7 tokens, left-padded to 7, and a second round of 2 tokens each."""
    draft = random_draft()
    short, long, later = random_pairs(4, seed=1), random_pairs(7, seed=2), random_pairs(2, batch_size=2, seed=3)
    together = generator_of(draft)
    padded = pad_left(*short, count=3)
    unpadded = pad_left(*long, count=0)
    first = together.draft_tree(*(torch.cat(pair) for pair in zip(padded, unpadded, strict=True)))
    second = together.draft_tree(*later)
    for row, prompt in enumerate((short, long)):
        alone = generator_of(draft)
        assert_same_tree(row_of(first, row), alone.draft_tree(*prompt))
        new = later[0][row, None], later[1][row, None]
        assert_same_tree(row_of(second, row), alone.draft_tree(*new))


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 8])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_read_in_chunks_drafts_the_same_trees(batch_size, num_layers, chunk_size):
    """9 pairs, then a round of 2 pairs; chunk_size 8 leaves a last chunk of 1."""
    draft = random_draft(num_hidden_layers=num_layers)
    prompt, later = random_pairs(9, batch_size), random_pairs(2, batch_size, seed=1)
    whole, chunked = generator_of(draft), generator_of(draft)
    expected = whole.draft_tree(*prompt)
    assert_same_tree(draft_tree_in_chunks(chunked, chunk_size, *prompt), expected)
    assert chunked.cache.get_seq_length() == 9
    assert_same_tree(chunked.draft_tree(*later), whole.draft_tree(*later))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5])
def test_padded_prompts_read_in_chunks_draft_the_same_trees(chunk_size):
    """Padding of 0, 3 and 6 of 8: less than a chunk, one and several whole chunks; the second round is ragged."""
    draft = random_draft()
    rows = [pad_left(*random_pairs(8 - padding, seed=padding), count=padding) for padding in (0, 3, 6)]
    prompt = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    later = random_pairs(3, batch_size=3, seed=1)
    whole, chunked = generator_of(draft), generator_of(draft)
    expected = whole.draft_tree(*prompt)
    assert_same_tree(draft_tree_in_chunks(chunked, chunk_size, *prompt), expected)
    num_new = [2, 3, 1]
    assert_same_tree(chunked.draft_tree(*later, num_new=num_new), whole.draft_tree(*later, num_new=num_new))


def draft_tree_in_chunks(generator: GriffinCandidateGenerator, chunk_size: int, *prompt: torch.Tensor) -> DraftTree:
    """The tree under tokens and features, with a mask if they are padded, of which the draft reads a chunk a pass."""
    *first, last = zip(*(part.split(chunk_size, dim=1) for part in prompt), strict=True)
    for chunk in first:
        generator.read_chunk(*chunk)
    return generator.draft_tree(*last)


def test_a_prompt_given_as_embeddings_drafts_the_same_tree():
    draft = random_draft()
    tokens, features = random_pairs(5)
    expected = generator_of(draft).draft_tree(tokens, features)
    embeds = draft.embed_tokens(tokens)
    assert_same_tree(generator_of(draft).draft_tree(tokens[:, -1:], features, token_embeds=embeds), expected)


# ---------------------------------------------------------------------- attention implementations


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_every_attention_implementation_drafts_the_same_tree(implementation):
    tokens, features = random_pairs(6, batch_size=2)
    expected = generator_of(random_draft(attn_implementation="sdpa")).draft_tree(tokens, features)
    draft = random_draft(attn_implementation=implementation)
    assert draft.config._attn_implementation == implementation
    generator = generator_of(draft)
    with torch.compiler.set_stance("force_eager"):  # flex attention's block masks without minutes of compilation
        assert_same_tree(generator.draft_tree(tokens, features), expected)


def test_a_flash_attention_draft_switches_to_sdpa_and_says_so(caplog):
    """What a draft loaded with flash attention does; the package need not be installed to see it."""
    draft = random_draft()
    draft.config._attn_implementation = "flash_attention_2"
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        generator_of(draft)
    assert draft.config._attn_implementation == "sdpa"
    assert "'flash_attention_2' takes no tree mask; the draft uses 'sdpa' instead" in caplog.text


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_tree_depth": 0}, r"`draft_tree_depth` is 0, but must be an integer from 1 to 16\. Set it in"),
        ({"draft_tree_depth": 17}, r"`draft_tree_depth` is 17, but must be an integer from 1 to 16\. Set it in"),
        ({"draft_tree_top_k": 0}, r"`draft_tree_top_k` is 0, but must be an integer from 1 to 32\. Set it in"),
        ({"draft_tree_top_k": 33}, r"`draft_tree_top_k` is 33, but must be an integer from 1 to 32\. Set it in"),
        (
            {"num_assistant_tokens": 0},
            r"`num_assistant_tokens` is 0, but must be an integer from 1 to 254\. Set it in",
        ),
        ({"num_assistant_tokens": 255}, r"`num_assistant_tokens` is 255, but must be an integer from 1 to 254\. Set"),
        ({"draft_tree_depth": 2.5}, r"`draft_tree_depth` is 2.5, but must be an integer from 1 to 16\. Set it in"),
        (
            {"draft_tree_depth": 2, "draft_tree_top_k": 3, "num_assistant_tokens": 13},
            r"`num_assistant_tokens` is 13, but a tree of `draft_tree_depth`=2 and `draft_tree_top_k`=3 has only 12 "
            r"candidates\. Lower `num_assistant_tokens` to that, or raise depth or width\.",
        ),
    ],
)
def test_settings_that_form_no_tree_are_refused(settings, message):
    draft = random_draft()
    draft.generation_config.update(**settings)
    with pytest.raises(ValueError, match=message):
        GriffinCandidateGenerator(draft)


def test_a_tree_wider_than_the_vocabulary_is_refused():
    draft = GriffinDraftModel.from_target(tiny_llama(vocab_size=8))
    draft.generation_config.update(draft_tree_top_k=9)
    with pytest.raises(ValueError, match="`draft_tree_top_k` is 9, but must be an integer from 1 to 8"):
        GriffinCandidateGenerator(draft)


@pytest.mark.parametrize(
    ("nodes", "depth", "top_k"), [(254, 16, 32), (254, 3, 32), (16, 16, 1), (1, 1, 1), (1, 16, 32), (12, 2, 3)]
)
def test_the_extreme_trees_are_drafted(nodes, depth, top_k):
    tree = generator_of(random_draft(), nodes, depth, top_k).draft_tree(*random_pairs(3))
    assert tree.tokens.shape == (1, nodes + 1)
    assert int(tree.depths.max()) <= depth
    assert (tree.parents[0, 1:] < torch.arange(1, nodes + 1)).all()


def test_settings_that_are_not_given_are_the_papers():
    """60 positions with the root, 6 levels, 10 tokens a level; the longest path has 7 nodes."""
    generator = GriffinCandidateGenerator(random_draft(), GenerationConfig())
    assert (generator.num_nodes, generator.depth, generator.top_k, generator.path_length) == (60, 6, 10, 7)


def test_a_chain_is_as_long_as_nodes_and_depth_allow():
    generator = generator_of(random_draft(), nodes=12, depth=4, top_k=3)
    generator.make_chain()
    assert generator.draft_tree(*random_pairs(3)).parents.tolist() == [[0, 0, 1, 2, 3]]


# ---------------------------------------------------------------------- drafts that misbehave


class OverflowingDraft(GriffinDraftModel):
    """Some logits of every level but the first are no numbers, as in a half-precision draft that overflows."""

    poison = torch.nan

    def compute_logits(self, predict: torch.Tensor) -> torch.Tensor:
        logits = super().compute_logits(predict)
        is_poisoned = torch.rand(logits.shape) < 0.3 if predict.shape[1] > 1 else torch.tensor(False)
        return logits.masked_fill(is_poisoned, self.poison)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_draft_that_overflows_leaves_the_answer_as_it_is(poison):
    """
    7 tokens only, so that many proposals are right. If NaN scores tore the tree apart, nodes would move to the root,
    two of them with the same token, and an answer with that token would go wrong.
    """
    target = tiny_llama(vocab_size=7).eval()
    torch.nn.init.normal_(target.lm_head.weight, std=1.0)
    draft = OverflowingDraft.from_target(target).eval()
    draft.poison = poison
    draft.generation_config.update(num_assistant_tokens=10, draft_tree_depth=4, draft_tree_top_k=3)
    settings = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    prompt = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(target.generate(prompt, assistant_model=draft, **settings), target.generate(prompt, **settings))


# ---------------------------------------------------------------------- the transformers interface


def test_candidates_are_the_likeliest_path_of_the_deepest_level():
    """Row by row the path to the best of the deepest nodes; all rows get as many candidates as the shallowest tree."""
    draft = random_draft()
    tokens, features = random_pairs(6, batch_size=3, seed=2)
    outputs = type("Outputs", (), {"hidden_states": (features,)})()
    sequence = torch.cat((torch.zeros(3, 1, dtype=torch.long), tokens), dim=1)
    tree = generator_of(draft, nodes=5, depth=4, top_k=3).draft_tree(tokens, features)
    num_levels = tree.depths.amax(dim=1)
    assert len(set(num_levels.tolist())) > 1  # else the rows would not differ

    candidates, logits = generator_of(draft, nodes=5, depth=4, top_k=3).get_candidates(sequence, outputs)

    assert logits is None
    assert candidates[:, :7].tolist() == sequence.tolist()
    for row in range(3):
        deepest = [n for n in range(6) if tree.depths[row, n] == num_levels.min()]
        leaf = max(deepest, key=lambda n: tree.scores[row, n].item())
        path = [n for n in range(1, 6) if tree.ancestors[row, leaf, n]]
        assert candidates[row, 7:].tolist() == tree.tokens[row, path].tolist()


def test_nothing_is_drafted_before_the_target_has_spoken():
    sequence = torch.tensor([[1, 2, 3]])
    candidates, logits = generator_of(random_draft()).get_candidates(sequence, None)
    assert candidates is sequence
    assert logits is None


def test_transformers_own_loop_decodes_with_it(monkeypatch):
    """The stock assisted loop, given this generator, emits plain decoding's tokens with fewer forwards."""
    target, draft = golden_case("llama_gqa")
    monkeypatch.setattr(
        LlamaForCausalLM, "_get_candidate_generator", lambda *args, **kwargs: generator_of(draft, 12, 4, 3)
    )
    calls = []
    target.model.register_forward_hook(lambda *args: calls.append(1))
    prompt, settings = torch.tensor([[5, 17, 42, 99]]), {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    expected = target.generate(prompt, eos_token_id=None, **settings)
    assert len(calls) == 40
    found = target.generate(prompt, eos_token_id=None, prompt_lookup_num_tokens=1, **settings)
    assert torch.equal(found, expected)
    assert len(calls) - 40 < 32
