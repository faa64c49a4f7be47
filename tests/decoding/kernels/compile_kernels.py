"""
Compiles every kernel for a GPU that need not be there, and prints the shared memory of each as JSON.

A process of its own, because the tests run the kernels in Triton's interpreter:

    TRITON_INTERPRET=0 python tests/decoding/kernels/compile_kernels.py 90
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from transformers_griffin.decoding.kernels import accept_walk, compaction, growth, int8_linear, tree_attention


I64, F32, BF16 = "*i64", "*fp32", "*bf16"
ATTENTION_TILE = tree_attention.TILES[0]

# kernel -> (types of its arguments that are no int32, constants, options)
KERNELS: dict[Any, tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = {
    tree_attention._attend_to_run: (
        dict.fromkeys(("query", "key", "value"), BF16)
        | {"mask": I64, "partial": F32, "lse": F32, "scaling": "fp32", "softcap": "fp32"},
        {"HAS_SOFTCAP": True, "WIDEN": False, "GROUP": 4, "WORDS": 1, "NUM_BOUNDS": 3, "BITS": 64}
        | {"LOG2_E": tree_attention.LOG2_E, "BLOCK_DIM": 128, "BLOCK_VALUE": 128}
        | {"BLOCK_ROWS": ATTENTION_TILE.rows, "BLOCK_SLOTS": ATTENTION_TILE.slots},
        {"num_warps": ATTENTION_TILE.num_warps, "num_stages": ATTENTION_TILE.num_stages},
    ),
    tree_attention._merge_runs: (
        {"partial": F32, "lse": F32, "sinks": BF16, "output": BF16},
        {"HAS_SINKS": True, "LOG2_E": tree_attention.LOG2_E, "BLOCK_ROWS": 16, "BLOCK_VALUE": 128},
        {},
    ),
    compaction._move: (
        dict.fromkeys(("sources", "starts"), I64) | {"entries": (BF16,) * 64},
        {"DTYPE": tl.int16, "BLOCK_PATH": 8, "BLOCK_DIM": 128, "dim_stride": 1},
        {},
    ),
    accept_walk._walk: (
        dict.fromkeys(("parents", "draft_tokens", "target_tokens", "nodes", "tokens", "lengths"), I64),
        {"BLOCK_NODES": 64},
        {},
    ),
    growth._grow: (
        dict.fromkeys(("tokens", "beam_index", "beam_sees", "parents"), I64)
        | dict.fromkeys(("new_tokens", "new_index", "new_rows", "new_sees"), I64)
        | dict.fromkeys(("log_probs", "beam_scores", "scores", "new_scores"), F32),
        {"WIDTH": 10, "K": 10, "MASK_SIZE": 4, "BITS": 64, "RANK_BLOCK": 16, "BLOCK": 128},
        {"num_warps": 8},
    ),
    growth._pick: (
        dict.fromkeys(("root_tokens", "pool_tokens", "pool_parents", "node_of"), I64)
        | dict.fromkeys(("tokens", "parents", "depths"), I64)
        | {"pool_scores": F32, "scores": F32, "ancestors": "*u8"},
        {"RANK_BLOCK": 16, "BLOCK": 512},
        {"num_warps": 8},
    ),
    int8_linear._multiply: (
        {"inputs": BF16, "weight": "*i8", "scales": BF16, "outputs": F32},
        {
            "WIDEN": False,
            "BLOCK_INPUTS": 16,
            "BLOCK_ROWS": int8_linear.BLOCK_ROWS,
            "BLOCK_WIDTH": int8_linear.BLOCK_WIDTH,
        },
        {},
    ),
}


def compile_kernel(kernel: Any, capability: int) -> int:
    """Bytes of shared memory that the kernel takes; pointers and strides are aligned as those of real tensors."""
    types, constants, options = KERNELS[kernel]
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = [
        index
        for index, name in enumerate(kernel.arg_names)
        if str(signature[name]).startswith("*") or name.startswith(("q_", "k_", "v_")) or name.endswith("_dim")
    ]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared


if __name__ == "__main__":
    shared = {kernel.__name__: compile_kernel(kernel, int(sys.argv[1])) for kernel in KERNELS}
    print(json.dumps(shared))  # noqa: T201
