"""
How N passes, which are no forward of the draft, reach it through what wraps it for data-parallel training.

Next: `record.py`.
"""

from collections.abc import Callable
from typing import Any

from accelerate.utils import FullyShardedDataParallelPlugin, is_compiled_module
from torch import nn


def shard_as_one_unit(plugin: FullyShardedDataParallelPlugin) -> None:
    """
    Makes FSDP2 gather the whole draft at once: it has one layer, and the passes call the parts of it, not the layer.

    Effects:
        Changes the plugin's `auto_wrap_policy`.

    Raises:
        ValueError: if FSDP is set to version 1, or to checkpoint the activations of layers.
    """
    if plugin.fsdp_version != 2 or plugin.activation_checkpointing:
        raise ValueError(
            f"FSDP is set to version {plugin.fsdp_version} with activation checkpointing "
            f"{plugin.activation_checkpointing}, but drafts are trained with version 2 and without. Set "
            '`fsdp_config={"version": 2}`, and `activation_checkpointing=True` in the training arguments.'
        )
    plugin.auto_wrap_policy = None


def call_through(wrapped: nn.Module, draft: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """
    Calls `function(*args)` as if it were the forward of `draft`, through whatever wraps it.

    Data-parallel wrappers prepare their gradient synchronisation when they are called, and call their module's
    `forward`. For the length of this call that forward is `function`.

    Effects:
        `draft.forward` is replaced until the wrapper reaches it, and then restored.
    """
    own_forward = draft.__dict__.get("forward")

    def restore() -> None:
        draft.__dict__.pop("forward", None)
        if own_forward is not None:
            draft.__dict__["forward"] = own_forward

    def forward(*inner_args: Any) -> Any:
        restore()
        return function(*inner_args)

    draft.__dict__["forward"] = forward
    try:
        # The parts are compiled, see GriffinTrainer; a compiled wrapper would not see the replacement.
        inner: Any = wrapped._orig_mod if is_compiled_module(wrapped) else wrapped
        return inner(*args)
    finally:
        restore()


__all__ = ["call_through", "shard_as_one_unit"]
