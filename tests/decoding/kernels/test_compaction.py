"""The accepted path of every row is moved in all tensors, and nothing else; tensors laid out alike share a launch."""

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache, StaticCache

from transformers_griffin.decoding import kernels
from transformers_griffin.decoding.kernels import compaction
from transformers_griffin.decoding.kernels.compaction import move_path, move_path_reference
from transformers_griffin.decoding.kv_cache import keep_path


each_mover = pytest.mark.parametrize("move", [move_path, move_path_reference], ids=["kernel", "reference"])


def make_entries(dtype: torch.dtype, batch_size: int) -> list[torch.Tensor]:
    """Keys and values of two layers; the second one has fewer heads, another width, and has dropped 4 slots."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 30, 8), (3, 30, 8), (1, 26, 20), (1, 26, 12)]
    return [torch.randn(batch_size, *shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


@each_mover
def test_worked_example(move):
    """The example of the docstring."""
    entries = torch.tensor([*range(5), *map(ord, "RabcdefX")], device=DEVICE, dtype=torch.float32).view(1, 1, -1, 1)
    move([entries], torch.tensor([[5, 7, 10]], device=DEVICE), torch.tensor([5], device=DEVICE))
    assert entries.flatten().tolist() == [*range(5), *map(ord, "RbecdefX")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_rows_move_paths_of_their_own_in_every_dtype(dtype):
    """The oracle copies entry by entry. Row 0 stays where its tree is, row 1 moves to its own, shorter prefix."""
    entries = make_entries(dtype, batch_size=2)
    sources, starts, offsets = [[12, 14, 15, 15], [12, 13, 20, 29]], [12, 9], [0, 0, 4, 4]
    expected = [tensor.clone() for tensor in entries]
    for tensor, before, offset in zip(expected, entries, offsets, strict=True):
        for row in range(2):
            for step in range(4):
                tensor[row, :, starts[row] + step - offset] = before[row, :, sources[row][step] - offset]

    move_path(entries, torch.tensor(sources, device=DEVICE), torch.tensor(starts, device=DEVICE), offsets)
    for ours, wanted in zip(entries, expected, strict=True):
        assert torch.equal(ours.float(), wanted.float())


def test_kernel_moves_what_the_reference_moves():
    """With the padding that accepted paths carry behind their end, which moves entries nobody needs."""
    ours, theirs = (make_entries(torch.float32, batch_size=3) for _ in range(2))
    path = torch.tensor([[0, 1, 4, 7, 7, 7, 7], [0, 0, 0, 0, 0, 0, 0], [0, 2, 3, 5, 8, 9, 11]], device=DEVICE)
    arguments = (path + 14, torch.tensor([14, 14, 14], device=DEVICE), [0, 0, 4, 4])
    move_path(ours, *arguments)
    move_path_reference(theirs, *arguments)
    for tensor, expected in zip(ours, theirs, strict=True):
        assert torch.equal(tensor, expected)


def test_entries_may_be_views():
    """As in a cache whose layers are slices of one tensor, or lie head by head."""
    big = torch.arange(2 * 2 * 20 * 4, device=DEVICE, dtype=torch.float32).view(2, 20, 2, 4)
    entries, expected = big.transpose(1, 2)[:, :, 3:], big.clone().transpose(1, 2)[:, :, 3:]
    arguments = (torch.tensor([[8, 11], [8, 9]], device=DEVICE), torch.tensor([8, 8], device=DEVICE))
    move_path([entries], *arguments)
    move_path_reference([expected], *arguments)
    assert torch.equal(entries, expected)


def test_cache_keeps_the_path_that_keep_path_keeps():
    """`keep_path` is what decoding does without kernels; it counts the path from the root's slot and then crops."""
    caches = [DynamicCache() for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for layer_idx in range(2):
        keys, values = (torch.randn(1, 2, 20, 8, generator=generator).to(DEVICE) for _ in range(2))
        for cache in caches:
            cache.update(keys.clone(), values.clone(), layer_idx)
    path = torch.tensor([[0, 3, 6, 6]], device=DEVICE)
    keep_path(caches[0], path, num_kept=3, num_nodes=9)

    entries = [tensor for layer in caches[1].layers for tensor in (layer.keys, layer.values)]
    move_path(entries, path + 11, torch.tensor([11], device=DEVICE))
    caches[1].crop(-6)
    for layer, expected in zip(caches[1].layers, caches[0].layers, strict=True):
        assert torch.equal(layer.keys, expected.keys)
        assert torch.equal(layer.values, expected.values)


def test_a_cache_whose_layers_are_alike_takes_one_launch(monkeypatch):
    """Two cycles of a static cache, gaps in the second, against a cache that does without kernels."""
    launches = []
    monkeypatch.setattr(compaction, "_move", LaunchRecorder(compaction._move, launches))
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=3)
    path = torch.tensor([[0, 2, 3, 3], [0, 1, 4, 5]], device=DEVICE)
    caches = [StaticCache(config, max_cache_len=30) for _ in range(2)]
    for cycle, gaps in enumerate((None, torch.tensor([[1], [0]], device=DEVICE))):
        generator = torch.Generator().manual_seed(cycle)
        new = [torch.randn(2, 2, 12 if cycle == 0 else 8, 8, generator=generator).to(DEVICE) for _ in range(6)]
        for cache, has_kernels in zip(caches, (True, False), strict=True):
            monkeypatch.setattr(kernels, "available", lambda device, answer=has_kernels: answer)
            for layer_idx in range(3):
                cache.update(*new[2 * layer_idx : 2 * layer_idx + 2], layer_idx)
            keep_path(cache, path, num_kept=4, num_nodes=8, gaps=gaps)
    for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert int(ours.cumulative_length) == int(theirs.cumulative_length) == 12
        assert torch.equal(ours.keys[:, :, :12], theirs.keys[:, :, :12])
        assert torch.equal(ours.values[:, :, :12], theirs.values[:, :, :12])
    assert launches == [(6, 2, 2)] * 2  # 3 layers' keys and values, rows, heads


class LaunchRecorder:
    """A kernel that writes its grids into a list."""

    def __init__(self, kernel: Any, grids: list[tuple[int, ...]]):
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self.kernel[grid]


def test_compiled_code_moves_its_own_tensors_and_in_order():
    """
    A compiler may hand copies to an operator that writes, and write them back: whatever it does, the entries that are
    written before move, and those that are read afterwards have moved.
    """

    def write_and_move(entries: list[torch.Tensor], sources: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        for tensor in entries:
            tensor[:, :, 10:] += 1.0
        move_path(entries, sources, starts)
        return torch.stack([tensor[:, :, 5].sum() for tensor in entries])

    arguments = (torch.tensor([[12, 14], [12, 13]], device=DEVICE), torch.tensor([5, 9], device=DEVICE))
    eager, ours = (make_entries(torch.float32, batch_size=2) for _ in range(2))
    expected = write_and_move(eager, *arguments)
    found = torch.compile(write_and_move, backend="aot_eager", fullgraph=True)(ours, *arguments)
    assert torch.equal(found, expected)
    for tensor, moved in zip(ours, eager, strict=True):
        assert torch.equal(tensor, moved)
