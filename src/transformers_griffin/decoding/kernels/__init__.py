"""
GPU kernels (Triton) for the parts of a cycle that PyTorch does in many small steps, each beside its reference.

    packed_mask.py         a tree's mask as a few numbers per node     reference: `tree_attention_mask`
    tree_attention.py      attention over prefix and tree              reference: `tree_attention_reference`
    attention_function.py    behind transformers' attention interface, for every model that uses it
    compaction.py          the accepted path in all layers' caches     reference: `move_path_reference`
    accept_walk.py         the path that the target accepts            reference: `accept_path`
    growth.py              a level of the tree, and the whole tree     references: `grow_level`, `build_tree`

**Experimental, and off by default**: correct in Triton's interpreter, not yet measured on a GPU. Two ways to try them:

    TRANSFORMERS_GRIFFIN_KERNELS=1 python ...
    transformers_griffin.decoding.kernels.enable()

Decoding then drafts, attends, accepts and compacts with them. Compiled cycles keep to the references, and so does a
walk that samples: it needs a choice at the nodes of one path, and warping the logits of all nodes beforehand, to walk
in one launch, would cost a sort of the vocabulary and a copy in fp32 for every node. [`available`] is the one place
that decides between kernel and reference.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch
from transformers.utils import ENV_VARS_TRUE_VALUES, logging


logger = logging.get_logger(__name__)

VARIABLE = "TRANSFORMERS_GRIFFIN_KERNELS"

_enabled: bool | None = None  # None: nobody has said, and the environment decides


def enable(on: bool = True) -> None:
    """
    Switches the kernels on, or off again, for every `generate()` of this process that starts afterwards; overrules the
    environment variable `TRANSFORMERS_GRIFFIN_KERNELS`. They run on GPUs only: on a CPU nothing changes.
    """
    global _enabled
    _enabled = on


def available(device: torch.device) -> bool:
    """
    Whether the kernels run on a device: they are enabled, Triton is installed and the device is a GPU that PyTorch
    calls "cuda", which includes ROCm. Elsewhere, and in compiled code, the PyTorch references run; if Triton alone is
    missing, a warning says so once.
    """
    return device.type == "cuda" and not torch.compiler.is_compiling() and _is_enabled() and _has_triton()


def _is_enabled() -> bool:
    return os.environ.get(VARIABLE, "").upper() in ENV_VARS_TRUE_VALUES if _enabled is None else _enabled


@cache
def _has_triton() -> bool:
    if find_spec("triton") is None:
        logger.warning("Triton is not installed: GRIFFIN's kernels, though enabled, are replaced by PyTorch code.")
        return False
    return True


__all__ = ["available", "enable"]
