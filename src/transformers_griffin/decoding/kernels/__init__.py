"""
GPU kernels (Triton) for the parts of a cycle that PyTorch does in many small steps, each beside its reference.

    packed_mask.py         a tree's mask as a few numbers per node     reference: `tree_attention_mask`
    tree_attention.py      attention over prefix and tree              reference: `tree_attention_reference`
    attention_function.py    behind transformers' attention interface, for every model that uses it
    compaction.py          the accepted path in all layers' caches     reference: `move_path_reference`
    accept_walk.py         the path that the target accepts            reference: `accept_path`
    growth.py, levels.py   a level of the tree, and the whole tree     references: `grow_level_reference`, `build_tree`

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
