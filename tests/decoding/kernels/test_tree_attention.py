"""Tree attention gives what plain attention gives under the tree's mask, in every dtype and shape."""

from dataclasses import dataclass, replace

import pytest
import torch
from kernel_cases import DEVICE, random_tree
from torch.nn.functional import scaled_dot_product_attention

from transformers_griffin.decoding.draft_tree import tree_attention_mask
from transformers_griffin.decoding.kernels.attention_function import tree_attention_forward
from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask, unpack_tree_mask
from transformers_griffin.decoding.kernels.tree_attention import tree_attention, tree_attention_reference


# fp32: the sums run in another order. Half precision: probabilities are rounded before they meet the values.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    name: str
    heads: int = 4
    kv_heads: int = 2
    n_nodes: int = 7
    prefix_lengths: tuple[int, ...] = (40, 33)
    num_empty: int = 0  # slots behind the tree
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    sliding_window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    num_splits: int | None = None


CASES = (
    Case("one head for each key-value head", heads=2, kv_heads=2),
    Case("groups of three", heads=6, kv_heads=2),
    Case("one key-value head for all", heads=8, kv_heads=1),
    Case("fp16", dtype=torch.float16, num_splits=2),
    Case("bf16", dtype=torch.bfloat16, num_splits=2),
    Case("heads that fill no tile, values of another width", head_dim=20, value_dim=12),
    Case("nodes in two words", n_nodes=66, heads=2, kv_heads=1, prefix_lengths=(40,)),
    Case("the largest tree, four words", n_nodes=255, heads=1, kv_heads=1, prefix_lengths=(5,)),
    Case("no prefix", prefix_lengths=(0, 0), num_splits=2),
    Case("several runs, some of them empty", prefix_lengths=(70, 3), num_splits=3),
    Case("a static cache with empty slots", num_empty=30, num_splits=2),
    Case("a window that hides most of the prefix", sliding_window=6, n_nodes=20, num_splits=2),
    Case("soft cap", softcap=2.0),
    Case("sinks", has_sinks=True, num_splits=2),
)


def make_inputs(case: Case) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch_size, longest = len(case.prefix_lengths), max(case.prefix_lengths)
    kv_len = longest + case.n_nodes + case.num_empty

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, case.dtype)

    tree = random_tree(batch_size, case.n_nodes)
    # Rows are padded on the left to the same length, all but the first slot of the longest row.
    num_padded = torch.tensor([min(longest - length + 1, longest) for length in case.prefix_lengths], device=DEVICE)
    return {
        "tree": tree,
        "num_padded": num_padded,
        # As the models have it: a transposed view of (batch_size, n_nodes, heads, head_dim).
        "query": draw(batch_size, case.n_nodes, case.heads, case.head_dim).transpose(1, 2),
        "key": draw(batch_size, case.kv_heads, kv_len, case.head_dim),
        "value": draw(batch_size, case.kv_heads, kv_len, case.value_dim),
        "sinks": draw(case.heads) if case.has_sinks else None,
        "mask": pack_tree_mask(
            tree.ancestors,
            tree.depths,
            torch.tensor([longest], device=DEVICE),
            num_padded=num_padded,
            sliding_window=case.sliding_window,
        ),
    }


def plain_attention(case: Case, inputs: dict) -> torch.Tensor:
    """The oracle, in float64 and with the mask that has a column for every slot."""
    tree, longest, kv_len = inputs["tree"], max(case.prefix_lengths), inputs["key"].shape[2]
    padding_mask = torch.arange(longest, device=DEVICE) >= inputs["num_padded"].unsqueeze(1)
    allowed = tree_attention_mask(tree, longest, kv_len, sliding_window=case.sliding_window, padding_mask=padding_mask)
    group = case.heads // case.kv_heads
    query = inputs["query"].double()
    key, value = (inputs[name].double().repeat_interleave(group, dim=1) for name in ("key", "value"))
    scores = query @ key.mT * case.head_dim**-0.5
    if case.softcap is not None:
        scores = case.softcap * (scores / case.softcap).tanh()
    exponentials = scores.exp() * allowed
    total = exponentials.sum(dim=-1, keepdim=True)
    if case.has_sinks:
        total = total + inputs["sinks"].double().exp().view(1, -1, 1, 1)
    return (exponentials / total @ value).transpose(1, 2)


def attend(function, case: Case, inputs: dict, **kwargs) -> torch.Tensor:
    arguments = [inputs[name] for name in ("query", "key", "value", "mask")]
    return function(*arguments, case.head_dim**-0.5, case.softcap, inputs["sinks"], **kwargs)


def assert_kernel_is_plain_attention(case: Case) -> None:
    inputs = make_inputs(case)
    output = attend(tree_attention, case, inputs, num_splits=case.num_splits)
    expected = plain_attention(case, inputs)
    assert output.dtype == case.dtype
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_kernel_is_plain_attention(case):
    assert_kernel_is_plain_attention(case)


@each_case
def test_reference_is_plain_attention(case):
    inputs = make_inputs(case)
    output = attend(tree_attention_reference, case, inputs)
    expected = plain_attention(case, inputs)
    assert output.dtype == case.dtype
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize("n_nodes", [1, 60, 130])
@pytest.mark.parametrize("sliding_window", [None, 33])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(None, False), (5.0, True)])
def test_kernel_is_plain_attention_over_the_grid(dtype, heads, kv_heads, n_nodes, sliding_window, softcap, has_sinks):
    case = Case("", heads, kv_heads, n_nodes, (150, 97), 13, 24, 24, dtype, sliding_window, softcap, has_sinks, 3)
    assert_kernel_is_plain_attention(case)


@pytest.mark.parametrize("num_splits", [2, 9])
def test_number_of_runs_changes_nothing_but_the_rounding(num_splits):
    case = Case("", prefix_lengths=(90, 41))
    inputs = make_inputs(case)
    whole = attend(tree_attention, case, inputs, num_splits=1)
    torch.testing.assert_close(attend(tree_attention, case, inputs, num_splits=num_splits), whole, rtol=0, atol=1e-6)


def test_hidden_slots_are_not_read_into_the_result():
    case = Case("", num_empty=9, num_splits=2)
    inputs = make_inputs(case)
    before = attend(tree_attention, case, inputs)
    hidden = slice(max(case.prefix_lengths) + case.n_nodes, None)
    for name in ("key", "value"):
        inputs[name][:, :, hidden] = 1e4
        inputs[name][1, :, : int(inputs["num_padded"][1])] = -1e4
    assert torch.equal(attend(tree_attention, case, inputs), before)


@pytest.mark.parametrize("num_splits", [None, 5])
def test_room_behind_the_tree_is_not_even_read(num_splits):
    """A static cache may be long and all but empty; what lies behind the bits of the mask is poison here."""
    short, long = Case("", num_splits=1), Case("", num_empty=500, num_splits=num_splits)
    inputs, with_room = make_inputs(short), make_inputs(long)
    start = max(short.prefix_lengths)
    for name in ("key", "value"):
        filled = inputs[name]
        with_room[name] = torch.nn.functional.pad(filled, (0, 0, 0, 500))
        with_room[name][:, :, start + 64 :] = torch.nan
    with_room |= {name: inputs[name] for name in ("query", "mask")}
    found = attend(tree_attention, long, with_room, num_splits=num_splits)
    torch.testing.assert_close(found, attend(tree_attention, short, inputs), rtol=0, atol=1e-6)


def test_values_may_lie_anywhere_in_memory():
    """Some models hand over transposed or sliced caches."""
    case = Case("", num_splits=2)
    inputs = make_inputs(case)
    before = attend(tree_attention, case, inputs)
    inputs["key"] = inputs["key"].transpose(1, 3).contiguous().transpose(1, 3)
    inputs["value"] = torch.cat((inputs["value"], inputs["value"]), dim=-1)[..., : case.value_dim]
    assert torch.equal(attend(tree_attention, case, inputs), before)


def test_attention_function_has_transformers_defaults():
    case = Case("")
    inputs = make_inputs(case)
    arguments = [inputs[name] for name in ("query", "key", "value", "mask")]
    output, weights = tree_attention_forward(torch.nn.Identity(), *arguments, sliding_window=3, is_causal=True)
    expected = scaled_dot_product_attention(
        inputs["query"],
        inputs["key"].repeat_interleave(2, dim=1),
        inputs["value"].repeat_interleave(2, dim=1),
        tree_attention_mask(
            inputs["tree"],
            40,
            47,
            padding_mask=torch.arange(40, device=DEVICE) >= inputs["num_padded"].unsqueeze(1),
        ),
    )
    assert weights is None
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=0, atol=1e-5)


def test_attention_function_is_sdpa_under_ordinary_masks():
    """As another thread asks for it that runs the target on something else."""
    case = Case("")
    inputs = make_inputs(case)
    arguments = [inputs[name] for name in ("query", "key", "value")]
    module = torch.nn.Identity()
    module.num_key_value_groups = 2
    allowed = unpack_tree_mask(inputs["mask"], inputs["key"].shape[2])
    output, _ = tree_attention_forward(module, *arguments, allowed)
    torch.testing.assert_close(output.double(), plain_attention(case, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", [{"position_bias": torch.zeros(1)}, {"dropout": 0.1}], ids=str)
def test_attention_function_refuses_what_it_does_not_compute(asked):
    inputs = make_inputs(replace(CASES[0]))
    arguments = [inputs[name] for name in ("query", "key", "value", "mask")]
    with pytest.raises(ValueError, match=f"asks its attention for {next(iter(asked))}, which the kernels do not"):
        tree_attention_forward(torch.nn.Identity(), *arguments, **asked)
