"""
GPU kernels (Triton) for the parts of a cycle that PyTorch does in many small steps, each beside its reference.

    packed_mask.py         a tree's mask as a few numbers per node
    tree_attention.py      attention over prefix and tree            reference: plain attention under the unpacked mask
    attention_function.py  ... behind transformers' attention interface, for every model that uses it

[`available`] is the one place that decides between kernel and reference.
"""

from functools import cache
from importlib.util import find_spec

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)


def available(device: torch.device) -> bool:
    """
    Whether the kernels run on a device: Triton is installed and the device is a GPU that PyTorch calls "cuda", which
    includes ROCm. Elsewhere the PyTorch references run; a GPU without Triton is logged once, at level info.
    """
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    if find_spec("triton") is None:
        logger.info("Triton is not installed: GRIFFIN's kernels are replaced by slower PyTorch code.")
        return False
    return True


__all__ = ["available"]
