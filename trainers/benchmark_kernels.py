"""
Times every kernel against what decoding does without it, at the shapes of an 8B target and the paper's tree.

    python trainers/benchmark_kernels.py                               # on a GPU
    python trainers/benchmark_kernels.py --interpret                   # tiny shapes on a CPU: does it run?

The last line of stdout is one JSON object. Milliseconds are medians; caches are cold for each attention call, as they
are in a forward with many layers. `share` of the compaction is that of a cycle given by `--cycle_ms`. Times of the
interpreter mean nothing and are not taken.

Not yet run on a GPU.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers


Timed = Callable[[], Any]


def main() -> None:
    args = parse_arguments()
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        vars(args).update(prefix=40, heads=4, kv_heads=2, head_dim=16, layers=2, nodes=8, depth=3, top_k=2, vocab=64)
        args.device, args.dtype = "cpu", "float32"
    torch.manual_seed(0)
    measured = {
        "tree_attention": time_attention(args),
        "compaction": time_compaction(args),
        "accept_walk": time_walk(args),
        "growth": time_growth(args),
        "int8_head": time_head(args),
    }
    for name, row in measured.items():
        print(f"{name:16s}" + "".join(f"  {key} {value}" for key, value in row.items()))
    device = "interpreter" if args.interpret else torch.cuda.get_device_name(args.device)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": device, "versions": versions, "arguments": vars(args), "measured": measured}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--prefix", type=int, default=8192, help="tokens before the tree")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv_heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--nodes", type=int, default=60, help="tree nodes, root included")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--top_k", type=int, default=10)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--cycle_ms", type=float, help="a cycle's time, for the share of the compaction")
    return parser.parse_args()


def compare(args: argparse.Namespace, kernel: Timed, reference: Timed) -> dict[str, float | None]:
    """Milliseconds of both, and how many times faster the kernel is; times of the interpreter are no figures."""
    if args.interpret:
        kernel(), reference()
        return {"kernel_ms": None, "pytorch_ms": None, "speedup": None}
    from triton.testing import do_bench

    kernel_ms, pytorch_ms = (do_bench(function, return_mode="median") for function in (kernel, reference))
    return {"kernel_ms": kernel_ms, "pytorch_ms": pytorch_ms, "speedup": pytorch_ms / kernel_ms}


def host_ms(function: Timed, repeats: int = 50) -> float:
    """Median time until the host may go on: what launches cost where nothing hides them."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def random_levels(args: argparse.Namespace) -> tuple[Any, Any]:
    """The pool of candidates that a random draft grows, and its last level but one."""
    from transformers_griffin.decoding.kernels.growth import grow_level
    from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask
    from transformers_griffin.decoding.levels import join_levels, root_beam

    device = torch.device(args.device)
    sees = torch.zeros(1, 1, args.depth * args.top_k, dtype=torch.bool, device=device)
    ends = torch.tensor([args.prefix], device=device)
    beam, levels = root_beam(pack_tree_mask(sees, sees[..., 0].long(), ends).squeeze(1)), []
    for level in range(args.depth):
        above = beam
        beam, candidates = grow_level(*random_proposals(args, above.tokens.shape[1]), above, level)
        levels.append(candidates)
    return join_levels(levels, device), above


def random_tree(args: argparse.Namespace) -> Any:
    from transformers_griffin.decoding.draft_tree import build_tree

    root = torch.zeros(1, 1, dtype=torch.long, device=args.device)
    return build_tree(root, random_levels(args)[0], args.nodes, args.depth)


def random_proposals(args: argparse.Namespace, width: int) -> Any:
    from transformers_griffin.decoding.levels import propose_children

    return propose_children(3 * torch.randn(1, width, args.vocab, device=args.device), args.top_k)


def time_attention(args: argparse.Namespace) -> dict[str, float | None]:
    """One layer, against sdpa with a mask, as transformers calls it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from transformers_griffin.decoding.draft_tree import tree_attention_mask
    from transformers_griffin.decoding.kernels.packed_mask import pack_tree_mask
    from transformers_griffin.decoding.kernels.tree_attention import tree_attention

    tree = random_tree(args)
    kv_length, kind = args.prefix + args.nodes, {"device": args.device, "dtype": getattr(torch, args.dtype)}
    query = torch.randn(1, args.nodes, args.heads, args.head_dim, **kind).transpose(1, 2)
    key, value = (torch.randn(1, args.kv_heads, kv_length, args.head_dim, **kind) for _ in range(2))
    packed = pack_tree_mask(tree.ancestors, tree.depths, torch.tensor([args.prefix], device=args.device))
    allowed = tree_attention_mask(tree, args.prefix, kv_length)
    module = torch.nn.Identity()
    module.num_key_value_groups = args.heads // args.kv_heads

    def with_kernel() -> torch.Tensor:
        return tree_attention(query, key, value, packed, args.head_dim**-0.5)

    def with_sdpa() -> torch.Tensor:
        return sdpa_attention_forward(module, query, key, value, allowed, scaling=args.head_dim**-0.5)[0]

    difference = (with_kernel().float() - with_sdpa().float()).abs().max().item()
    return compare(args, with_kernel, with_sdpa) | {"largest_difference": difference}


def time_compaction(args: argparse.Namespace) -> dict[str, float | None]:
    """All layers."""
    from transformers_griffin.decoding.kernels.compaction import move_path
    from transformers_griffin.decoding.kv_cache import _move_to_front

    shape = (1, args.kv_heads, args.prefix + args.nodes, args.head_dim)
    kind = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    entries = [torch.randn(shape, **kind) for _ in range(2 * args.layers)]
    path = torch.arange(args.depth + 1, device=args.device).unsqueeze(0) * (args.nodes - 1) // args.depth
    starts = torch.tensor([args.prefix], device=args.device)

    def with_kernel() -> None:
        move_path(entries, path + starts, starts)

    def with_pytorch() -> None:
        for tensor in entries:
            _move_to_front(tensor, path, args.prefix, None)

    row = compare(args, with_kernel, with_pytorch)
    host = None if args.interpret else host_ms(with_kernel)
    longest = None if row["kernel_ms"] is None or host is None else max(row["kernel_ms"], host)
    share = None if longest is None or args.cycle_ms is None else longest / args.cycle_ms
    return row | {"host_ms": host, "share": share}


def time_walk(args: argparse.Namespace) -> dict[str, float | None]:
    from transformers_griffin.decoding.kernels.accept_walk import accept_walk
    from transformers_griffin.decoding.verification import accept_path

    tree = random_tree(args)
    choices = tree.tokens.roll(-1, dims=1)
    return compare(
        args,
        lambda: accept_walk(tree.parents, tree.tokens, choices, args.depth + 1),
        lambda: accept_path(tree, choices, args.depth + 1),
    )


def time_growth(args: argparse.Namespace) -> dict[str, float | None]:
    """One level and the choice of the tree's nodes, without the top-k over the vocabulary that both need."""
    from transformers_griffin.decoding import draft_tree, levels
    from transformers_griffin.decoding.kernels import growth

    pool, packed = random_levels(args)
    num_slots = (args.depth - 1) * args.top_k  # that the last level but one may see
    flags = torch.ones(1, args.top_k, num_slots, dtype=torch.bool, device=args.device)
    beam = levels.Beam(packed.tokens, packed.scores, packed.pool_index, packed.rows, sees=flags)
    proposals = random_proposals(args, args.top_k)
    root = torch.zeros(1, 1, dtype=torch.long, device=args.device)

    def with_kernels() -> None:
        growth.grow_level(*proposals, packed, args.depth - 1)
        growth.build_tree(root, pool, args.nodes, args.depth)

    def with_pytorch() -> None:
        levels.grow_level(*proposals, beam, args.depth - 1)
        draft_tree.build_tree(root, pool, args.nodes, args.depth)

    return compare(args, with_kernels, with_pytorch)


def time_head(args: argparse.Namespace) -> dict[str, float | None]:
    """The LM head of a level in int8, against the head itself."""
    from transformers_griffin.decoding.kernels.int8_linear import int8_linear

    width = args.heads * args.head_dim
    inputs = torch.randn(args.top_k, width, device=args.device).bfloat16().to(getattr(torch, args.dtype))
    weight = torch.randint(-127, 128, (args.vocab, width), device=args.device, dtype=torch.int8)
    scales = torch.rand(args.vocab, device=args.device, dtype=torch.bfloat16) / width
    head = weight.to(inputs.dtype) * scales.to(inputs.dtype).unsqueeze(1)

    def with_kernel() -> torch.Tensor:
        return int8_linear(inputs.bfloat16(), weight, scales)

    def with_pytorch() -> torch.Tensor:
        return torch.nn.functional.linear(inputs, head)

    difference = (with_kernel() - with_pytorch().float()).abs().max().item()
    return compare(args, with_kernel, with_pytorch) | {"largest_difference": difference}


if __name__ == "__main__":
    main()
