"""Two processes equal one on the union batch, and a checkpoint of one is a checkpoint of the other."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from causvid.errors import UserError
from causvid.training import parallel
from causvid.training.checkpoint import list_checkpoints, load_checkpoint, read_checkpoint, save_checkpoint
from causvid.training.ema import EMA
from causvid.training.optim import OptimConfig, all_parameters, build_optimizers, step_all

CFG = OptimConfig(lr=1e-2, warmup=1, clip=0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


def build() -> tuple[dict[str, nn.Module], dict, EMA]:
    torch.manual_seed(0)
    net, averages = Net(), Net()
    averages.load_state_dict(net.state_dict())
    for module in (net, averages):
        parallel.shard(module, module.blocks)
    return {"net": net, "averages": averages}, build_optimizers(CFG, [net]), EMA(averages, 0.9)


def take_steps(modules, optimizers, ema, steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 6, generator=rng), torch.randn(8, 2, generator=rng)
        rows = parallel.my_rows(8)
        loss = (modules["net"](x[rows]) - y[rows]).square().mean()
        loss.backward()
        norm = parallel.clip_gradients(all_parameters(optimizers), CFG.clip)
        assert norm > CFG.clip  # so that clipping takes part in the comparison
        step_all(optimizers, 1e-2)
        ema.update(modules["net"])


def train(folder: Path, start: int, stop: int) -> None:
    modules, optimizers, ema = build()
    if start:
        load_checkpoint(read_checkpoint(list_checkpoints(folder)[-1]), modules=modules, optimizers=optimizers)
        ema.num_updates = start
    take_steps(modules, optimizers, ema, range(start, stop))
    save_checkpoint(folder, stop, modules=modules, optimizers=optimizers, state={}, about={})


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    parallel.start()
    try:
        assert parallel.num_ranks() == 2 and parallel.is_first() == (rank == 0)
        assert parallel.my_rows(8) == slice(4 * rank, 4 * rank + 4)
        assert float(parallel.mean_over_ranks(torch.tensor(float(rank)))) == 0.5
        assert parallel.first_decides(float(rank + 3)) == 3
        with pytest.raises(UserError, match="a batch of 3"):
            parallel.my_rows(3)
        train(folder / "two", 0, 3)
        train(folder / "one", 2, 3)  # what a single process began
    finally:
        parallel.stop()


def test_two_processes_equal_one(tmp_path):
    train(tmp_path / "single", 0, 3)
    train(tmp_path / "one", 0, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, tmp_path), nprocs=2)

    states = {}
    for name in ("single", "two", "one"):
        modules, optimizers, _ = build()
        load_checkpoint(read_checkpoint(list_checkpoints(tmp_path / name)[-1]), modules=modules, optimizers=optimizers)
        states[name] = {f"{m}.{k}": v for m, module in modules.items() for k, v in module.state_dict().items()}
        states[name] |= {
            f"{o}.{i}.{k}": v.float()
            for o, optimizer in optimizers.items()
            for i, entry in optimizer.state_dict()["state"].items()
            for k, v in entry.items()
        }
    assert len(states["single"]) > 20
    for name in ("two", "one"):
        for key, value in states["single"].items():
            # Muon's iterations are in bfloat16 and blow up the last bit of a gradient
            torch.testing.assert_close(states[name][key], value, atol=2e-4, rtol=1e-3, msg=lambda m, k=key: f"{k} {m}")


def test_one_process_is_the_identity():
    x = torch.arange(3.0)
    assert parallel.my_rows(5) == slice(0, 5) and parallel.num_ranks() == 1
    assert torch.equal(parallel.mean_over_ranks(x), x) and parallel.first_decides(2.5) == 2.5
    assert torch.equal(parallel.gathered({"a": [x]})["a"][0], x)
