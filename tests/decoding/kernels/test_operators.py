"""What PyTorch's compilers are told about the operators is true: schemas, shapes, and who is written to."""

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, random_tree

from transformers_griffin.decoding.kernels import growth
from transformers_griffin.decoding.kernels.compaction import move_path
from transformers_griffin.decoding.kernels.int8_linear import int8_linear
from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask
from transformers_griffin.decoding.kernels.tree_attention import tree_attention


def attention_arguments(dtype: torch.dtype, sinks: bool, softcap: float | None) -> tuple[Any, ...]:
    """Values of another width than keys, and queries as the models have them: a transposed view."""
    tree = random_tree(2, 7)
    mask = pack_tree_mask(tree.ancestors, tree.depths, torch.tensor([9], device=DEVICE))
    query = torch.randn(2, 7, 4, 16, device=DEVICE, dtype=dtype).transpose(1, 2)
    key, value = (torch.randn(2, 2, 30, width, device=DEVICE, dtype=dtype) for width in (16, 12))
    return query, key, value, mask, 0.25, softcap, torch.randn(4, device=DEVICE, dtype=dtype) if sinks else None


def move_arguments(offsets: list[int] | None) -> tuple[Any, ...]:
    entries = [torch.randn(2, 3, 12, 8, device=DEVICE) for _ in range(4)]
    return entries, torch.tensor([[5, 7], [5, 6]], device=DEVICE), torch.tensor([5, 3], device=DEVICE), offsets


def level_arguments(width: int) -> tuple[Any, ...]:
    """Two rows' children, three for each node of the level above, and room for the candidates and the next level."""
    tokens, log_probs = torch.randint(9, (2, width, 3), device=DEVICE), -torch.rand(2, width, 3, device=DEVICE)
    index, scores = torch.zeros(2, width, dtype=torch.long, device=DEVICE), torch.zeros(2, width, device=DEVICE)
    sees = torch.zeros(2, width, 4, dtype=torch.long, device=DEVICE)
    candidates = [scores.new_zeros(2, 3 * width), index.new_zeros(2, 3 * width)]
    beam = [index.new_zeros(2, 3), scores.new_zeros(2, 3), index.new_zeros(2, 3), index.new_zeros(2, 3)]
    return [tokens, log_probs, scores, index, sees], [*candidates, *beam, sees.new_zeros(2, 3, 4)], 1


def tree_arguments(num_nodes: int) -> tuple[Any, ...]:
    """Two rows with a pool of two levels, and room for their trees."""
    scores = -torch.rand(2, 3, device=DEVICE).repeat_interleave(4, dim=1).cumsum(dim=1)  # children score less
    parents = torch.tensor([[-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3] * 2, device=DEVICE)
    tokens = torch.arange(24, device=DEVICE).view(2, 12)
    ancestors = torch.zeros(2, num_nodes, num_nodes, dtype=torch.bool, device=DEVICE)
    numbers = [tokens.new_zeros(2, num_nodes) for _ in range(3)]
    written = [torch.zeros_like(tokens), *numbers, ancestors, scores.new_zeros(2, num_nodes)]
    return [tokens[:, :1].contiguous(), tokens, scores, parents], written, 2


def head_arguments() -> tuple[Any, ...]:
    inputs, scales = (torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) for shape in ((3, 16), (70,)))
    return inputs, torch.randint(-127, 128, (70, 16), dtype=torch.int8, device=DEVICE), scales


CASES = {
    "attention": (tree_attention, attention_arguments(torch.float32, sinks=False, softcap=None)),
    "attention with all options": (tree_attention, attention_arguments(torch.bfloat16, sinks=True, softcap=3.0)),
    "compaction": (move_path, move_arguments(None)),
    "compaction of layers with windows": (move_path, move_arguments([0, 0, 2, 2])),
    "the first level": (growth._launch_grow, level_arguments(1)),
    "a level": (growth._launch_grow, level_arguments(3)),
    "a tree": (growth._launch_pick, tree_arguments(6)),
    "a head in int8": (int8_linear, head_arguments()),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_are_what_they_say(name: str) -> None:
    operator, arguments = CASES[name]
    torch.library.opcheck(operator, arguments)
