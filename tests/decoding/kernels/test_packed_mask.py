"""A packed tree mask says the same as the mask that has a column for every cache slot."""

import pytest
import torch
from kernel_cases import DEVICE, chain, random_tree

from transformers_griffin.decoding.draft_tree import first_nodes, tree_attention_mask
from transformers_griffin.decoding.kernels.packed_mask import pack_bits, pack_tree_mask, unpack_tree_mask


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def test_worked_example():
    """The example of the docstring: 5 slots, the first one padding; root -- a -- b; a window of 4."""
    tree = chain(3)
    mask = pack_tree_mask(tree.ancestors, tree.depths, lengths(5), num_padded=lengths(1), sliding_window=4)
    assert mask.tolist() == [[[[2, 5, 5, 0b001], [3, 5, 5, 0b011], [4, 5, 5, 0b111]]]]


def test_words_hold_64_flags_each_and_the_last_one_is_padded():
    flags = torch.zeros(3, 66, dtype=torch.bool, device=DEVICE)
    flags[0, 0] = flags[0, 2] = flags[1, 63] = flags[2, 65] = True
    assert pack_bits(flags).tolist() == [[5, 0], [-(2**63), 0], [0, 2]]


@pytest.mark.parametrize("n_nodes", [1, 2, 63, 64, 65, 128, 255])
@pytest.mark.parametrize(
    ("sliding_window", "kv_offset", "num_empty"),
    [(None, 0, 0), (None, 0, 7), (1, 0, 0), (6, 0, 3), (40, 0, 0), (6, 9, 0)],
)
def test_mask_is_the_long_one_packed(n_nodes, sliding_window, kv_offset, num_empty):
    tree = random_tree(batch_size=2, n_nodes=n_nodes)
    prefix_length = 20
    padding_mask = torch.ones(2, prefix_length, device=DEVICE)
    padding_mask[1, :11] = 0
    kv_length = prefix_length + n_nodes + num_empty - kv_offset
    packed = pack_tree_mask(
        tree.ancestors,
        tree.depths,
        lengths(prefix_length),
        num_padded=lengths(0, 11),
        sliding_window=sliding_window,
        kv_offset=kv_offset,
    )
    expected = tree_attention_mask(tree, prefix_length, kv_length, kv_offset, sliding_window, padding_mask)
    assert torch.equal(unpack_tree_mask(packed, kv_length), expected)


def test_every_row_has_a_prefix_of_its_own_length():
    """Row 0: 9 slots, then the tree. Row 1: 4 slots, the tree from slot 9 on, as in a cache that is not compacted."""
    tree = random_tree(batch_size=2, n_nodes=12)
    packed = pack_tree_mask(tree.ancestors, tree.depths, lengths(9, 4), starts=lengths(9), sliding_window=5)
    seen = unpack_tree_mask(packed, 21)
    for row, prefix_length in enumerate((9, 4)):
        alone = tree_attention_mask(tree, prefix_length, prefix_length + 12, sliding_window=5)[row, 0]
        assert torch.equal(seen[row, 0, :, :prefix_length], alone[:, :prefix_length])
        assert not seen[row, 0, :, prefix_length:9].any()
        assert torch.equal(seen[row, 0, :, 9:], alone[:, prefix_length:])


def test_nodes_that_attend_may_be_fewer_than_those_in_the_cache():
    """The last level of a draft's tree sees the levels before it."""
    tree = random_tree(batch_size=1, n_nodes=10)
    packed = pack_tree_mask(tree.ancestors[:, 7:], tree.depths[:, 7:], lengths(6))
    expected = tree_attention_mask(first_nodes(tree, 10), 6, 16)[:, :, 7:]
    assert torch.equal(unpack_tree_mask(packed, 16), expected)
