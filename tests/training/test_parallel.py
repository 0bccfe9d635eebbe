"""Two processes equal one on the union batch, and a checkpoint of one is a checkpoint of the other."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.distributed_c10d import Backend, BackendConfig

from causvid.errors import UserError
from causvid.training import checkpoint as checkpointing
from causvid.training import parallel, run, shards
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


def state_of(modules, optimizers) -> dict[str, torch.Tensor]:
    """Whole tensors by name. Collective."""
    state = {f"{m}.{k}": v for m, module in modules.items() for k, v in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, entry in optimizer.state_dict()["state"].items():
            state |= {f"{name}.{index}.{key}": value for key, value in entry.items()}
    return {key: parallel.whole(value).detach().float() for key, value in state.items()}


def load(folder: Path) -> dict[str, torch.Tensor]:
    modules, optimizers, _ = build()
    load_checkpoint(read_checkpoint(list_checkpoints(folder)[-1]), modules=modules, optimizers=optimizers)
    return state_of(modules, optimizers)


def worker(rank: int, ports: tuple[int, int], folder: Path) -> None:
    """Three processes: first two of them, then all."""
    torch.set_num_threads(1)
    for num_ranks, port, work in ((2, ports[0], two), (3, ports[1], three)):
        if rank < num_ranks:
            about = {"MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_RANK": rank}
            os.environ.update(MASTER_ADDR="127.0.0.1", **{name: str(value) for name, value in about.items()})
            parallel.start()
            try:
                work(rank, folder)
            finally:
                parallel.stop()
    parallel.leave()


def two(rank: int, folder: Path) -> None:
    assert parallel.num_ranks() == 2 and parallel.is_first() == (rank == 0)
    assert parallel.my_rows(8) == slice(4 * rank, 4 * rank + 4)
    assert float(parallel.mean_over_ranks(torch.tensor(float(rank)))) == 0.5
    assert parallel.first_decides(float(rank + 3)) == 3
    with pytest.raises(UserError, match="a batch of 3"):
        parallel.my_rows(3)
    for interrupted, steps in ((0, 2), (1, 4)):  # in their second step; the first rank decides
        sitting = Interrupted(rank == interrupted)
        assert run.take_steps(sitting, run.Budget(steps=4), save_minutes=0.0) == (interrupted == 1)
        assert sitting.step == steps
    train(folder / "one", 2, 3)  # what a single process began
    train(folder / "two", 0, 2)
    train(folder / "two", 2, 3)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:  # so late that the folder has its name already
            patch.setattr(checkpointing, "num_files", lambda folder: len(list((folder / "gone").iterdir())))
        train(folder / "straight", 0, 3)
    resumed, straight = load(folder / "two"), load(folder / "straight")
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
    if rank == 0:
        torch.save(straight, folder / "straight.pt")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"No space left.*free space"):
        if rank == 1:
            patch.setattr(shards.HuggingFaceStorageWriter, "write_data", full_disk)
        train(folder / "two", 3, 4)
    parallel.wait_for_all()
    assert [path.name for path in sorted((folder / "two").iterdir())] == ["step-00000002", "step-00000003"]
    for file, content in (("damaged", b"no tensors"), ("lost", None)):
        if rank == 0:
            step = shutil.copytree(list_checkpoints(folder / "two")[-1], folder / file / "step-00000003")
            part = sorted((step / "shards").iterdir())[1]
            part.unlink() if content is None else part.write_bytes(content)
        parallel.wait_for_all()
        with pytest.raises(UserError, match="resumes from the one before"):
            load(folder / file)


class Interrupted:
    """A sitting that only counts, until it is sent a signal."""

    def __init__(self, is_it: bool) -> None:
        self.is_it, self.step, self.seconds = is_it, 0, 0.0

    def take_step(self, progress: float) -> None:
        self.step += 1
        if self.is_it and self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def save(self) -> None:
        parallel.wait_for_all()


def full_disk(*args) -> None:
    raise OSError(28, "No space left on device")


def three(rank: int, folder: Path) -> None:
    """A number that divides neither rows nor layers: one process has nothing of the head's bias."""
    mine = torch.arange(6.0)[2 * rank : 2 * rank + 2, None] * torch.tensor([1.0, 1 / 3])
    assert torch.equal(parallel.union_of_rows(mine), torch.arange(6.0)[:, None] * torch.tensor([1.0, 1 / 3]))
    expected = torch.load(folder / "straight.pt", weights_only=True)
    modules, optimizers, _ = build()
    checkpoint = read_checkpoint(list_checkpoints(folder / "two")[-1])
    load_checkpoint(checkpoint, modules=modules, optimizers=optimizers)
    assert all(torch.equal(value, expected[key]) for key, value in state_of(modules, optimizers).items())
    save_checkpoint(folder / "three", 3, modules=modules, optimizers=optimizers, state={}, about={})
    if rank == 0:
        time.sleep(0.2)  # so that the others have said by then what shall follow
    told = torch.distributed.all_reduce(torch.ones(()), async_op=True)
    told.get_future().then(lambda _: [time.sleep(0.01) for _ in range(500)])  # a thread of gloo is still at it


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_any_number_of_processes_equals_one(tmp_path):
    train(tmp_path / "single", 0, 3)
    train(tmp_path / "one", 0, 2)
    mp.spawn(worker, ((free_port(), free_port()), tmp_path), nprocs=3)
    expected = load(tmp_path / "single")
    assert len(expected) > 20
    states = {name: load(tmp_path / name) for name in ("straight", "two", "one")}
    for key, value in expected.items():
        for name, state in states.items():
            # Muon's iterations are in bfloat16 and blow up the last bit of a gradient
            torch.testing.assert_close(
                state[key], value, atol=2e-4, rtol=1e-3, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )

    # what several wrote is the same to any other number, to the last bit
    straight = torch.load(tmp_path / "straight.pt", weights_only=True)
    for name in ("two", "three"):
        assert not list(tmp_path.glob(f"{name}/step-00000003/**/.metadata"))  # no pickled index
        assert all(torch.equal(load(tmp_path / name)[key], value) for key, value in straight.items())

    checkpoint = read_checkpoint(list_checkpoints(tmp_path / "three")[-1])
    smaller, wider = Net(), Net()
    smaller.blocks, wider.head = smaller.blocks[:2], nn.Linear(6, 3)
    for modules, message in (
        ({"critic": Net()}, "critic/.* is missing"),
        ({"net": smaller}, "net/blocks.2.*belong to nothing"),
        ({"net": wider}, r"net/head.* of \[2"),
    ):
        with pytest.raises(UserError, match=message):
            load_checkpoint(checkpoint, modules=modules, optimizers={})

    # and a single process goes on from it as from its own
    resumed = tmp_path / "resumed"
    shutil.copytree(list_checkpoints(tmp_path / "two")[0], resumed / "step-00000002")
    train(resumed, 2, 3)
    for key, value in load(resumed).items():
        torch.testing.assert_close(value, expected[key], atol=2e-4, rtol=1e-3)


def test_processes_with_accelerators_talk_about_both_kinds_of_tensors(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.start("cuda") == torch.device("cuda", 1)
    device, backend = asked
    assert device == 1 and BackendConfig(Backend(backend)).device_backend_map.keys() == {"cpu", "cuda"}


def test_one_process_is_the_identity():
    x = torch.arange(3.0)
    assert parallel.my_rows(5) == slice(0, 5) and parallel.num_ranks() == 1
    assert torch.equal(parallel.mean_over_ranks(x), x) and parallel.first_decides(2.5) == 2.5
    assert parallel.union_of_rows(x) is x
