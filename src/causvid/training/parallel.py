"""Several processes as one: ranks, sharded networks, and states that do not know how they were sharded.

Launched with torchrun; without it everything here is the identity. The rule that keeps training the same on any number
of ranks: all ranks draw the whole batch from the same generator, and each takes its own rows of it.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from causvid.errors import UserError

M = TypeVar("M", bound=nn.Module)


def start(device: str = "cpu") -> torch.device:
    """Join the other processes of a torchrun launch, if there is one; returns this process's device."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # numbers of the clock and what checkpoints tell each other are on the CPU, which NCCL does not carry
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int = 0) -> NoReturn:
    """End this process of several at once, with nothing of the interpreter taken down.

    Threads of gloo outlive the process group of sharded networks; one that still wants the interpreter while it is
    taken down aborts a process whose work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def my_rows(batch: int) -> slice:
    """This rank's rows of a batch that all ranks know."""
    if batch % num_ranks():
        raise UserError(f"a batch of {batch} does not split over {num_ranks()} processes; choose a multiple of it.")
    share = batch // num_ranks()
    return slice(rank() * share, (rank() + 1) * share)


def union_of_rows(mine: Tensor) -> Tensor:
    """The rows of all ranks, on every rank, in the order of `my_rows`. Collective."""
    if not dist.is_initialized():
        return mine
    parts = [torch.empty_like(mine) for _ in range(num_ranks())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of equally large shares."""
    if not dist.is_initialized():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / num_ranks()


def first_decides(value: float) -> float:
    """The first rank's number, on every rank: what depends on a clock must not differ between them."""
    if not dist.is_initialized():
        return value
    told = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(told, src=0)
    return float(told)


def shard(model: M, blocks: Iterable[nn.Module] = (), *, dtype: torch.dtype | None = None) -> M:
    """Spread parameters, gradients and moments over the ranks, block by block; in place, nothing on one process.

    `dtype` is that of gathered weights and of the arithmetic; gradients are always reduced in float32.
    """
    if dist.is_initialized():
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        # what is frozen has no backward pass, after which a root would scatter its parameters again
        fully_shard(model, mp_policy=policy, reshard_after_forward=True)
    return model


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients to a joint norm of at most `max_norm`; returns the norm they had."""
    norm = nn.utils.clip_grad_norm_(list(parameters), max_norm)
    return float(whole(norm))


def whole(x: Tensor) -> Tensor:
    """All of a tensor that may be spread over ranks. Collective."""
    return x.full_tensor() if isinstance(x, DTensor) else x


# ---- states as if nothing were sharded -----------------------------------------------------------------------------


def scattered(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as `like` is."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


@torch.no_grad()
def load_gathered(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a module, sharded or not; every name must match."""
    wanted = module.state_dict()
    if wanted.keys() != state.keys():
        odd = sorted(wanted.keys() ^ state.keys())
        raise UserError(f"the checkpoint does not fit {type(module).__name__}: {', '.join(odd[:4])} do not match.")
    for name, place in wanted.items():
        if place.shape != state[name].shape:
            raise UserError(f"the checkpoint has {name} of {list(state[name].shape)} instead of {list(place.shape)}.")
        place.copy_(scattered(state[name], place))


def load_gathered_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict`, with moments laid out as their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            key: scattered(value, parameters[index]) if isinstance(value, Tensor) and value.ndim else value
            for key, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
