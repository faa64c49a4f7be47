"""The kernel multiplies as plain arithmetic does, whatever does not fit into its blocks."""

import pytest
import torch
from kernel_cases import DEVICE

from transformers_griffin.decoding.kernels.int8_linear import int8_linear


def arguments(num_inputs: int, num_rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_inputs, width, generator=generator).to(DEVICE, torch.bfloat16)
    weight = torch.randint(-127, 128, (num_rows, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(num_rows, generator=generator).to(DEVICE, torch.bfloat16)
    return inputs, weight.to(DEVICE), scales


@pytest.mark.parametrize(
    ("num_inputs", "num_rows", "width"),
    [(1, 1, 16), (2, 64, 128), (10, 65, 144), (16, 128, 256), (17, 200, 32), (64, 63, 128), (65, 130, 272)],
)
def test_products_are_those_of_plain_arithmetic(num_inputs: int, num_rows: int, width: int) -> None:
    inputs, weight, scales = arguments(num_inputs, num_rows, width)
    expected = (inputs.double() @ weight.double().T) * scales.double()
    result = int8_linear(inputs, weight, scales)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-3)


def test_the_reference_gives_the_same_in_bfloat16() -> None:
    inputs, weight, scales = (tensor.cpu() for tensor in arguments(5, 70, 64))
    result = int8_linear(*(tensor.to(DEVICE) for tensor in (inputs, weight, scales))).cpu()
    torch.testing.assert_close(torch._weight_int8pack_mm(inputs, weight, scales).float(), result, rtol=1e-2, atol=0.1)
