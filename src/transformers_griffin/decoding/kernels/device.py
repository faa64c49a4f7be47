"""
What a launch has to know about its device.

Next: `packed_mask.py`.
"""

from functools import cache

import torch


def on_device_of(tensor: torch.Tensor) -> torch.cuda.device:
    """Makes the device of a tensor the current one, on which Triton launches; nothing to do on a CPU."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


@cache
def device_limits(device: torch.device) -> tuple[int, int]:
    """
    Processors of a device, and the bytes of shared memory that one program may use. A CPU, where kernels run in
    Triton's interpreter, has one processor and passes for a device of modest memory.
    """
    if device.type != "cuda":
        return 1, 100_000
    properties = torch.cuda.get_device_properties(device)
    # ROCm does not say; its GPUs have 64 KiB.
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 65_536)


__all__ = ["device_limits", "on_device_of"]
