"""
A linear layer with weights in int8, for few inputs: it takes as long as its weights take to arrive.

1. A program owns some rows of the weight and walks along them, for up to `MAX_BLOCK_INPUTS` inputs at once.
2. Weights become bfloat16 after they have arrived: int8 fits into its 8 bits of mantissa exactly.
3. Sums are in fp32 and stay so: bfloat16 would make many logits equal.

Reference: `torch._weight_int8pack_mm`, which `../draft_head.py` calls on CPUs.

Notation for shapes: n inputs of width d; `rows` of the weight.

Next: `../draft_head.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take pointers, for which Python has no type)

import torch
import triton
import triton.language as tl

from .device import on_device_of
from .product import MIN_SIDE, must_widen, product


BLOCK_ROWS, BLOCK_WIDTH = 64, 128
MAX_BLOCK_INPUTS = 64  # sums that fit into registers


@torch.library.custom_op("transformers_griffin::int8_linear", mutates_args=())
def int8_linear(inputs: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """
    Multiplies inputs with the rows of a weight.

    Args:
        inputs (`torch.Tensor` of shape `(n, d)`): in bfloat16, contiguous.
        weight (`torch.Tensor` of shape `(rows, d)`): int8, contiguous.
        scales (`torch.Tensor` of shape `(rows,)`): by which rows were divided.

    Returns:
        `torch.Tensor` of shape `(n, rows)`, in fp32.
    """
    (num_inputs, width), num_rows = inputs.shape, weight.shape[0]
    outputs = inputs.new_empty(num_inputs, num_rows, dtype=torch.float32)
    block_inputs = min(max(triton.next_power_of_2(num_inputs), MIN_SIDE), MAX_BLOCK_INPUTS)
    with on_device_of(inputs):
        _multiply[triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(num_inputs, block_inputs)](
            inputs, weight, scales, outputs, num_inputs, num_rows, width,
            WIDEN=must_widen(inputs.dtype), BLOCK_INPUTS=block_inputs, BLOCK_ROWS=BLOCK_ROWS, BLOCK_WIDTH=BLOCK_WIDTH,
        )  # fmt: skip
    return outputs


@int8_linear.register_fake
def _(inputs: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return inputs.new_empty(inputs.shape[0], weight.shape[0], dtype=torch.float32)


@triton.jit
def _multiply(
    inputs, weight, scales, outputs, num_inputs, num_rows, width,
    WIDEN: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    # 1. Rows across, inputs down; a large head has more weights than 32 bits can count.
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    place = tl.program_id(1) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
    is_row, is_input = row < num_rows, place < num_inputs
    total = tl.zeros((BLOCK_INPUTS, BLOCK_ROWS), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        column = start + tl.arange(0, BLOCK_WIDTH)
        is_inside = column < width
        of_inputs = tl.load(
            inputs + place[:, None] * width + column[None, :], mask=is_input[:, None] & is_inside[None, :], other=0.0
        )
        of_rows = tl.load(
            weight + row[None, :] * width + column[:, None], mask=is_row[None, :] & is_inside[:, None], other=0
        )
        # 2. and 3.
        total += product(of_inputs, of_rows.to(tl.float32 if WIDEN else tl.bfloat16), WIDEN)
    scale = tl.load(scales + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(
        outputs + place[:, None].to(tl.int64) * num_rows + row[None, :],
        total * scale[None, :],
        mask=is_input[:, None] & is_row[None, :],
    )


__all__ = ["int8_linear"]
