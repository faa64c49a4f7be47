"""
Layers that write behind what they hold are, to whoever reads them, dynamic layers.

The oracle is the dynamic layer of transformers that is told the same.
"""

from collections.abc import Callable

import pytest
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from transformers_griffin.decoding.growing_layers import (
    SPARE_SLOTS,
    GrowingLayer,
    GrowingSlidingLayer,
    as_dynamic,
    as_growing,
)


BATCH_SIZE, HEADS, KEY_DIM, VALUE_DIM = 3, 2, 4, 6
WINDOW = 5
Layers = tuple[GrowingLayer, DynamicLayer]


def _new_entries(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, never the same; heads and slots lie in memory as projections leave them."""
    keys, values = (torch.rand(BATCH_SIZE, count, HEADS, dim) for dim in (KEY_DIM, VALUE_DIM))
    return keys.transpose(1, 2), values.transpose(1, 2)


def _update(layers: Layers, count: int) -> None:
    new = _new_entries(count)
    returned, expected = (layer.update(*new) for layer in layers)
    for ours, theirs in zip(returned, expected, strict=True):
        assert torch.equal(ours, theirs)


def _assert_same(layers: Layers) -> None:
    ours, theirs = layers
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


def _addresses(layer: GrowingLayer) -> tuple[int, int]:
    return layer.keys.data_ptr(), layer.values.data_ptr()


def test_layer_holds_what_a_dynamic_one_holds_over_more_cycles_than_fit_into_one_store() -> None:
    """Every cycle writes 8 nodes and cuts 5 of them."""
    layers = GrowingLayer(), DynamicLayer()
    _update(layers, 11)
    for _ in range(SPARE_SLOTS):
        _update(layers, 8)
        for layer in layers:
            layer.crop(-5)
        _assert_same(layers)


def test_nothing_is_copied_while_there_is_room() -> None:
    layer = GrowingLayer()
    layer.update(*_new_entries(11))
    addresses = _addresses(layer)
    for _ in range(SPARE_SLOTS):
        layer.update(*_new_entries(8))
        layer.crop(-7)
        assert _addresses(layer) == addresses or layer.get_seq_length() > 11 + SPARE_SLOTS - 8
    layer.update(*_new_entries(8))
    assert _addresses(layer) != addresses


def test_layer_takes_over_entries_and_does_not_write_behind_them() -> None:
    """A cropped dynamic layer: what lies behind its end may be another's."""
    dynamic = DynamicLayer()
    keys, _ = dynamic.update(*_new_entries(9))
    before = keys.clone()
    dynamic.crop(-4)
    growing = as_growing(dynamic)
    growing.update(*_new_entries(4))
    assert torch.equal(keys, before)
    assert torch.equal(growing.keys[:, :, :5], before[:, :, :5])


def test_replaced_entries_are_those_that_count() -> None:
    layers = GrowingLayer(), DynamicLayer()
    _update(layers, 9)
    replaced = _new_entries(7)
    for layer in layers:
        layer.keys, layer.values = replaced
    _update(layers, 3)
    _assert_same(layers)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.batch_select_indices(torch.tensor([2, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([0])),
        lambda layer: layer.reorder_cache(torch.tensor([1, 2, 0])),
        lambda layer: layer.reset(),
    ],
    ids=["two rows", "the first row", "another order", "nothing"],
)
def test_rows_can_be_chosen_and_all_be_forgotten(change: Callable[[DynamicLayer], None]) -> None:
    layers = GrowingLayer(), DynamicLayer()
    _update(layers, 9)
    for layer in layers:
        change(layer)
    num_rows = BATCH_SIZE if layers[1].keys is None else layers[1].keys.shape[0]
    new = [entries[:num_rows] for entries in _new_entries(3)]
    for layer in layers:
        layer.update(*new)
    _assert_same(layers)


def test_rows_that_were_not_chosen_are_freed() -> None:
    layer = GrowingLayer()
    layer.update(*_new_entries(9))
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.keys.untyped_storage().nbytes() == HEADS * 9 * KEY_DIM * 4
    assert not layer.stores


def test_layer_with_a_window_holds_what_a_dynamic_one_holds() -> None:
    """Every cycle keeps 3 of 8 nodes; the window wanders to the end of several stores."""
    dynamic = DynamicSlidingWindowLayer(WINDOW)
    dynamic.update(*_new_entries(12))
    growing = as_growing(dynamic)
    assert type(growing) is GrowingSlidingLayer
    dynamic.activate_past_recording()
    num_copies, address = 0, None
    for cycle in range(SPARE_SLOTS):
        assert growing.get_mask_sizes(8) == dynamic.get_mask_sizes(8)
        _update((growing, dynamic), 8)
        for layer in (growing, dynamic):
            layer.crop(-5)
        growing.forget(12 + 3 * (cycle + 1))
        _assert_same((growing, dynamic))
        now = growing.keys.untyped_storage().data_ptr()
        num_copies, address = num_copies + (now != address), now
    assert 2 <= num_copies <= 6  # 192 slots in stores with room for 64 and more


def test_layer_is_given_back_as_it_came() -> None:
    full, window = DynamicLayer(), DynamicSlidingWindowLayer(WINDOW)
    new = _new_entries(12)
    for layer in (full, window):
        layer.update(*new)
        given_back = as_dynamic(as_growing(layer))
        assert type(given_back) is type(layer)
        _assert_same((given_back, layer))
        more = _new_entries(2)
        for one in (given_back, layer):
            one.update(*more)
        _assert_same((given_back, layer))


def test_layers_that_nothing_has_reached_stay_empty() -> None:
    for layer in (DynamicLayer(), DynamicSlidingWindowLayer(WINDOW)):
        growing = as_growing(layer)
        assert not growing.is_initialized
        assert growing.get_seq_length() == 0
        assert not as_dynamic(growing).is_initialized


def test_other_layers_are_left_alone() -> None:
    layer = StaticLayer(40)
    assert as_growing(layer) is layer
    assert as_dynamic(layer) is layer
