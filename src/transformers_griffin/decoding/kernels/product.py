"""
Matrix products that Triton's interpreter can compute, too.

Next: `tree_attention.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take tensors of a program, for which Python has no type)

import torch
import triton
import triton.language as tl


IS_INTERPRETED = triton.knobs.runtime.interpret
MIN_SIDE = 16  # the smallest side of a matrix product in Triton


def must_widen(dtype: torch.dtype) -> bool:
    """Whether [`product`] has to widen its factors: the interpreter can neither multiply bf16 nor make it of int8."""
    return IS_INTERPRETED and dtype == torch.bfloat16


@triton.jit
def product(a, b, WIDEN: tl.constexpr):
    """A matrix product in fp32; widening its factors changes no product."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


__all__ = ["MIN_SIDE", "must_widen", "product"]
