"""
GPU kernels (Triton) for the parts of a cycle that PyTorch does in many small steps, each beside its reference.

    packed_mask.py         a tree's mask as a few numbers per node     reference: `tree_attention_mask`
    tree_attention.py      attention over prefix and tree              reference: `tree_attention_reference`
    attention_function.py    behind transformers' attention interface, for every model that uses it
    compaction.py          the accepted path in all layers' caches     reference: `move_path_reference`
    accept_walk.py         the path that the target accepts            reference: `accept_path`
    growth.py              a level of the tree, and the whole tree     references: `grow_level`, `build_tree`
    int8_linear.py         the LM head in int8                         reference: `torch._weight_int8pack_mm`

**Experimental, and off by default**: correct in Triton's interpreter, not yet measured on a GPU. Two ways to try them:

    TRANSFORMERS_GRIFFIN_KERNELS=1 python ...
    transformers_griffin.decoding.kernels.enable()

Decoding then drafts, attends, accepts and compacts with them, compiled or not: those within a compiled cycle are
custom operators of PyTorch, so that a compiler sees a call and not what is inside. A walk with processors that sort
the vocabulary or read the prefix keeps to the reference: it needs choices at the nodes of one path, not at all nodes.
[`available`] is the one place that decides between kernel and reference.
"""

import os
from importlib.util import find_spec

import torch
from transformers.utils import ENV_VARS_TRUE_VALUES, logging


logger = logging.get_logger(__name__)

VARIABLE = "TRANSFORMERS_GRIFFIN_KERNELS"
HAS_TRITON = find_spec("triton") is not None

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
    calls "cuda", which includes ROCm. Elsewhere the PyTorch references run; if Triton alone is missing, a warning says
    so once. A cycle that was compiled before [`enable`] was called is compiled again.
    """
    return device.type == "cuda" and _is_enabled() and _has_triton()


def _is_enabled() -> bool:
    return os.environ.get(VARIABLE, "").upper() in ENV_VARS_TRUE_VALUES if _enabled is None else _enabled


@torch.compiler.assume_constant_result  # compilers cannot look into logging
def _has_triton() -> bool:
    if not HAS_TRITON:
        logger.warning_once(
            "Triton is not installed: GRIFFIN's kernels, though enabled, are replaced by PyTorch code."
        )
    return HAS_TRITON


__all__ = ["available", "enable"]
