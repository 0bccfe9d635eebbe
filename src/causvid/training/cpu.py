"""Training on a CPU core without waste: matrix products in bfloat16, and attention as plain products.

The CPU's fused attention saves memory but its backward pass in bfloat16 is 2 to 4 times slower than writing the
products out (measured at 28 to 588 tokens), which is a fifth of a training step. Applied from outside, so the network
has one attention and knows nothing of this.
"""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from causvid.models.dit import Block, VideoDiT


class AttentionByProducts(TorchFunctionMode):
    """While it is entered, unmasked attention is softmax(q k') v with all weights kept for the backward pass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and not kwargs and len(args) == 3:
            q, k, v = args
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def fast_training(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype` (float32 switches it off), with written-out attention where that is the faster one."""
    with contextlib.ExitStack() as stack:
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
            if device.type == "cpu":
                stack.enter_context(AttentionByProducts())
        yield


def compile_blocks(model: VideoDiT) -> None:
    """Compile the blocks of a network that is only ever shown whole clips: once for all blocks, again for every shape.

    A block's number, which only a cache asks for, would make the compiler treat each block on its own; it is erased.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 32
    for block in cast("list[Block]", model.blocks):
        block.layer = 0
        block.compile(dynamic=False)
