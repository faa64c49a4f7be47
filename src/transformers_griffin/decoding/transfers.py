"""
Numbers that the host knows, on their way to the device.

A copy from ordinary memory lets the host wait until the device has done all that it was told before. From pinned
memory it is one more thing that the device is told.

Next: `kv_cache.py`.
"""

from typing import Any

import torch


def to_device(values: list[Any], device: torch.device) -> torch.Tensor:
    """Integers or booleans, in lists of any depth, as a tensor on `device`; the host waits for nothing."""
    tensor = torch.tensor(values, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


__all__ = ["to_device"]
