"""
The cache after a cycle holds the prefix and the accepted path, whatever the kind of layer.

The oracle is a plain list for each row: entries are numbers, a tree appends its nodes, and the accepted ones stay.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import Cache, DynamicCache, LlamaConfig, MistralConfig, StaticCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from transformers_griffin.decoding.growing_layers import GrowingSlidingLayer
from transformers_griffin.decoding.kv_cache import (
    StaticFullSlidingLayer,
    can_branch,
    can_roll_back,
    crop_last,
    forget_behind_windows,
    keep_path,
    prepare_for_tree,
    start_growing,
    stop_growing,
)


BATCH_SIZE, HEADS, HEAD_DIM = 2, 3, 4
WINDOW = 5
NUM_NODES = 8  # more than the window holds
MAX_LENGTH = 40

# What a layer remembers of a row's entries.
Visible = Callable[[list[int]], list[int]]

LAYERS: dict[str, tuple[Callable[[], object], Visible]] = {
    "dynamic": (DynamicLayer, lambda entries: entries),
    "dynamic with a window": (lambda: DynamicSlidingWindowLayer(WINDOW), lambda entries: entries[-(WINDOW - 1) :]),
    "static": (lambda: StaticLayer(MAX_LENGTH), lambda entries: entries),
    "static with a window": (lambda: StaticSlidingWindowLayer(MAX_LENGTH, WINDOW), lambda entries: entries),
}

each_layer = pytest.mark.parametrize("kind", LAYERS)


def _states(entries: list[list[int]]) -> torch.Tensor:
    """Rows of numbers as states of shape `(batch_size, heads, length, head_dim)`; heads and channels differ too."""
    numbers = torch.tensor(entries, dtype=torch.float32)[:, None, :, None]
    return numbers + 1000 * torch.arange(HEADS)[None, :, None, None] + 0.125 * torch.arange(HEAD_DIM)


class Rows:
    """The oracle: two rows of entries, each entry a number never used before."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = [[] for _ in range(BATCH_SIZE)]
        self._numbers: Iterator[int] = iter(range(1, 10_000))

    def append(self, cache: Cache, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes `count` new entries to both the rows and the cache; returns what attention would read."""
        new = [[next(self._numbers) for _ in range(count)] for _ in self.rows]
        for row, numbers in zip(self.rows, new, strict=True):
            row.extend(numbers)
        return cache.update(_states(new), -_states(new), 0)

    def keep(self, path: torch.LongTensor, num_kept: int, num_nodes: int) -> None:
        for index, row in enumerate(self.rows):
            nodes = row[len(row) - num_nodes :]
            self.rows[index] = row[: len(row) - num_nodes] + [nodes[node] for node in path[index, :num_kept].tolist()]


def _check(cache: Cache, oracle: Rows, visible: Visible) -> None:
    """The layer knows its length and holds what it should remember."""
    expected = [visible(row) for row in oracle.rows]
    assert int(cache.get_seq_length()) == len(oracle.rows[0])
    layer, length = cache.layers[0], len(expected[0])
    torch.testing.assert_close(layer.keys[:, :, :length], _states(expected), rtol=0, atol=0)
    torch.testing.assert_close(layer.values[:, :, :length], -_states(expected), rtol=0, atol=0)
    if not isinstance(layer, StaticLayer):
        assert layer.keys.shape[2] == length


def _random_path(generator: torch.Generator, num_kept: int) -> torch.LongTensor:
    """For each row the root and rising nodes below it, padded with the last one as the accept walk does."""
    path = torch.zeros(BATCH_SIZE, NUM_NODES, dtype=torch.long)
    for row in path:
        below = 1 + torch.randperm(NUM_NODES - 1, generator=generator)[: num_kept - 1].sort().values
        row[1:num_kept], row[num_kept:] = below, below[-1] if num_kept > 1 else 0
    return path


@each_layer
@pytest.mark.parametrize("prompt_length", [1, 3, WINDOW - 1, WINDOW, 12])
def test_accepted_paths_stay_in_order_over_many_cycles(kind: str, prompt_length: int) -> None:
    """Each row accepts nodes of its own; the sequence crosses the window in one cycle or in several."""
    make_layer, visible = LAYERS[kind]
    cache, oracle = Cache(layers=[make_layer()]), Rows()
    prepare_for_tree(cache, NUM_NODES, MAX_LENGTH)
    oracle.append(cache, prompt_length)
    start_growing(cache)
    generator = torch.Generator().manual_seed(prompt_length)
    for num_kept in (1, 3, NUM_NODES, 2, 1, 5):
        oracle.append(cache, NUM_NODES)
        path = _random_path(generator, num_kept)
        keep_path(cache, path, num_kept, NUM_NODES)
        oracle.keep(path, num_kept, NUM_NODES)
        forget_behind_windows(cache, len(oracle.rows[0]))
        _check(cache, oracle, visible)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_that_keep_different_numbers_of_nodes_stay_as_long_as_they_are(kind: str) -> None:
    """Three cycles; the cache is as long as the longer row, each row is stored from the left, and 0 may be kept."""
    make_layer, _ = LAYERS[kind]
    cache, oracle = Cache(layers=[make_layer()]), Rows()
    prepare_for_tree(cache, NUM_NODES, MAX_LENGTH)
    oracle.append(cache, 6)
    start_growing(cache)
    rows, lengths = [list(row) for row in oracle.rows], [6, 6]
    generator = torch.Generator().manual_seed(0)
    for kept in ([3, 1], [1, 5], [0, 8], [4, 2]):
        width = max(lengths)
        oracle.append(cache, NUM_NODES)
        path = torch.stack([_random_path(generator, max(n, 1))[row] for row, n in enumerate(kept)])
        for row, n in enumerate(kept):
            nodes = oracle.rows[row][-NUM_NODES:]
            rows[row].extend(nodes[node] for node in path[row, :n].tolist())
        gaps = torch.tensor([[width - length] for length in lengths])
        lengths = [length + n for length, n in zip(lengths, kept, strict=True)]
        keep_path(cache, path, max(lengths) - width, NUM_NODES, gaps)
        forget_behind_windows(cache, min(lengths))
        assert int(cache.get_seq_length()) == max(lengths)
        layer = cache.layers[0]
        first = max(min(lengths) - WINDOW + 1, 0) if type(layer) is GrowingSlidingLayer else 0
        for row, entries in enumerate(rows):
            found = layer.keys[row : row + 1, :, : lengths[row] - first]
            torch.testing.assert_close(found, _states([entries[first:]]), rtol=0, atol=0)
        if not isinstance(layer, StaticLayer):
            assert layer.keys.shape[2] == max(lengths) - first


def test_layer_with_a_window_takes_over_what_another_holds_and_gives_it_back() -> None:
    cache, oracle = Cache(layers=[DynamicSlidingWindowLayer(WINDOW)]), Rows()
    oracle.append(cache, 9)
    start_growing(cache)
    assert type(cache.layers[0]) is GrowingSlidingLayer
    assert cache.get_mask_sizes(NUM_NODES, 0) == (WINDOW - 1 + NUM_NODES, 9 - WINDOW + 1)
    oracle.append(cache, 3)
    stop_growing(cache)
    assert type(cache.layers[0]) is DynamicSlidingWindowLayer
    _check(cache, oracle, LAYERS["dynamic with a window"][1])
    oracle.append(cache, 1)
    _check(cache, oracle, LAYERS["dynamic with a window"][1])


@each_layer
def test_attention_reads_as_many_entries_as_the_mask_has_columns(kind: str) -> None:
    """Prefix (or what the window leaves of it) and tree, in order; in a static layer the empty rest behind them."""
    make_layer, _ = LAYERS[kind]
    cache, oracle = Cache(layers=[make_layer()]), Rows()
    prepare_for_tree(cache, NUM_NODES, MAX_LENGTH)
    oracle.append(cache, 7)
    start_growing(cache)
    for num_kept in (2, 4, 1):
        kv_length, kv_offset = cache.get_mask_sizes(NUM_NODES, 0)
        keys, values = oracle.append(cache, NUM_NODES)
        assert keys.shape[2] == values.shape[2] == kv_length
        read = [row[int(kv_offset) :] for row in oracle.rows]
        torch.testing.assert_close(keys[:, :, : len(read[0])], _states(read), rtol=0, atol=0)
        path = torch.arange(NUM_NODES).expand(BATCH_SIZE, -1)
        keep_path(cache, path, num_kept, NUM_NODES)
        oracle.keep(path, num_kept, NUM_NODES)
        forget_behind_windows(cache, len(oracle.rows[0]))


@each_layer
def test_a_chain_is_cut_behind_its_accepted_part(kind: str) -> None:
    make_layer, visible = LAYERS[kind]
    cache, oracle = Cache(layers=[make_layer()]), Rows()
    prepare_for_tree(cache, NUM_NODES, MAX_LENGTH)
    oracle.append(cache, 4)
    start_growing(cache)
    for num_rejected in (3, 0, 1, 4):
        oracle.append(cache, 5)
        crop_last(cache, num_rejected)
        oracle.rows = [row[: len(row) - num_rejected] for row in oracle.rows]
        forget_behind_windows(cache, len(oracle.rows[0]))
        _check(cache, oracle, visible)


def test_path_longer_than_the_tree_is_cut_to_it() -> None:
    """Depth 6 but 3 nodes: the accept walk pads its path to 7 entries."""
    cache, oracle = DynamicCache(), Rows()
    oracle.append(cache, 4)
    oracle.append(cache, 3)
    path = torch.tensor([[0, 2, 2, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]])
    keep_path(cache, path, 2, 3)
    oracle.keep(path, 2, 3)
    _check(cache, oracle, LAYERS["dynamic"][1])


def test_layers_without_entries_are_left_alone() -> None:
    """A layer that reads another layer's cache, and one that has not been reached yet."""
    cache, oracle = Cache(layers=[DynamicLayer(), DummyLayer(), DynamicLayer()]), Rows()
    oracle.append(cache, 4)
    oracle.append(cache, NUM_NODES)
    keep_path(cache, torch.arange(NUM_NODES).expand(BATCH_SIZE, -1), 2, NUM_NODES)
    assert cache.get_seq_length() == 6
    assert cache.layers[1].keys is None
    assert not cache.layers[2].is_initialized


def test_static_buffers_stay_where_they_are() -> None:
    """Compiled code and CUDA graphs hold their addresses."""
    cache, oracle = Cache(layers=[StaticLayer(MAX_LENGTH)]), Rows()
    oracle.append(cache, 4)
    addresses = [tensor.data_ptr() for tensor in (cache.layers[0].keys, cache.layers[0].values)]
    oracle.append(cache, NUM_NODES)
    keep_path(cache, _random_path(torch.Generator().manual_seed(0), 3), 3, NUM_NODES)
    assert [tensor.data_ptr() for tensor in (cache.layers[0].keys, cache.layers[0].values)] == addresses


# ---------------------------------------------------------------------------------------------------- room for a tree


def _config(**fields: object) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, **fields)


def test_empty_static_layers_grow_by_the_tree() -> None:
    """40 tokens, of which the last may be the root of a tree with 7 nodes behind it."""
    cache = StaticCache(_config(), max_cache_len=40)
    prepare_for_tree(cache, NUM_NODES, max_length=40)
    assert [layer.max_cache_len for layer in cache.layers] == [47, 47]


def test_static_layers_with_room_enough_are_kept() -> None:
    cache = StaticCache(_config(), max_cache_len=47)
    layers = list(cache.layers)
    prepare_for_tree(cache, NUM_NODES, max_length=40)
    assert all(now is before for now, before in zip(cache.layers, layers, strict=True))


def test_static_layers_of_a_user_are_kept_and_those_of_generate_get_the_room_they_need() -> None:
    """`generate()` makes its cache as long as the longest answer so far."""
    for is_users, capacity in ((True, 1000), (False, 64)):
        cache = StaticCache(_config(), max_cache_len=1000)
        cache._is_user_defined = is_users
        prepare_for_tree(cache, NUM_NODES, max_length=40, capacity_step=64)
        assert [layer.max_cache_len for layer in cache.layers] == [capacity, capacity]


def test_filled_static_layers_need_room_for_a_tree_and_not_for_a_whole_step() -> None:
    cache = StaticCache(_config(), max_cache_len=47)
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    prepare_for_tree(cache, NUM_NODES, max_length=40, capacity_step=64)
    assert cache.layers[0].max_cache_len == 47
    with pytest.raises(ValueError, match="The static cache holds 47 tokens, but 41 tokens and a tree of 8 nodes"):
        prepare_for_tree(cache, NUM_NODES, max_length=41, capacity_step=64)


def test_static_layers_with_windows_remember_the_whole_sequence() -> None:
    config = MistralConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, sliding_window=WINDOW)
    cache = StaticCache(config, max_cache_len=40)
    prepare_for_tree(cache, NUM_NODES, max_length=40)
    assert [type(layer) for layer in cache.layers] == [StaticFullSlidingLayer] * 2
    assert cache.is_sliding == [True, True]
    assert cache.get_mask_sizes(NUM_NODES, 0) == (47, 0)


def test_full_static_layer_that_is_too_small_is_refused() -> None:
    cache, oracle = Cache(layers=[StaticLayer(46)]), Rows()
    oracle.append(cache, 4)
    with pytest.raises(ValueError, match="holds 46 tokens, but 40 tokens and a tree of 8 nodes behind them need 47"):
        prepare_for_tree(cache, NUM_NODES, max_length=40)


def test_static_layer_with_a_window_that_holds_tokens_is_refused() -> None:
    cache, oracle = Cache(layers=[StaticSlidingWindowLayer(MAX_LENGTH, WINDOW)]), Rows()
    oracle.append(cache, 4)
    with pytest.raises(ValueError, match="sliding-window layers that already holds tokens cannot verify trees"):
        prepare_for_tree(cache, NUM_NODES, max_length=40)


# ---------------------------------------------------------------------------------------------------- which caches


@pytest.mark.parametrize("kind", LAYERS)
def test_attention_layers_can_hold_a_tree(kind: str) -> None:
    make_layer, _ = LAYERS[kind]
    assert can_branch(Cache(layers=[make_layer(), DummyLayer()]))


def test_cache_that_grows_its_layers_as_it_goes_can_hold_a_tree() -> None:
    assert can_branch(DynamicCache())


@pytest.mark.parametrize(
    ("layer", "rolls_back"), [(DynamicIndexedLayer, True), (LinearAttentionLayer, False)], ids=lambda v: str(v)
)
def test_layers_with_more_than_keys_and_values_hold_no_tree(layer: Callable[[], object], rolls_back: bool) -> None:
    cache = Cache(layers=[DynamicLayer(), layer()])
    assert not can_branch(cache)
    assert can_roll_back(cache) == rolls_back


def test_offloaded_cache_can_neither_branch_nor_roll_back() -> None:
    """Its layers are elsewhere while others are at work."""
    cache = DynamicCache(config=_config())
    cache.offloading = True
    assert not can_branch(cache)
    assert not can_roll_back(cache)
