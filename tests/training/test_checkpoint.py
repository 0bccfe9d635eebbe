"""Checkpoints and run folders: whole or absent, refused in words."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from causvid.errors import UserError
from causvid.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_weights,
)
from causvid.training.optim import Muon
from causvid.training.run import Budget, Run


@dataclass(frozen=True)
class Config:
    width: int = 4


def trained(seed: int):
    torch.manual_seed(seed)
    net = nn.Linear(4, 4)
    optimizers = {"adamw": torch.optim.AdamW([net.bias]), "muon": Muon([net.weight], 0.1)}
    net(torch.ones(1, 4)).square().sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return {"net": net}, optimizers


def save(folder, step, seed=0):
    modules, optimizers = trained(seed)
    return save_checkpoint(
        folder, step, modules=modules, optimizers=optimizers, state={"drawn": 7}, about={"data": "x"}
    )


def test_everything_comes_back(tmp_path):
    save(tmp_path, 3, seed=1)
    modules, optimizers = trained(1)
    again, again_optimizers = trained(2)
    checkpoint = read_checkpoint(list_checkpoints(tmp_path)[-1])
    load_checkpoint(checkpoint, modules=again, optimizers=again_optimizers)
    assert (checkpoint.step, checkpoint.state, checkpoint.about) == (3, {"drawn": 7}, {"data": "x"})
    for modules_, optimizers_ in ((modules, optimizers), (again, again_optimizers)):
        for optimizer in optimizers_.values():
            optimizer.zero_grad()
        modules_["net"](torch.arange(4.0)[None]).sum().backward()
        for optimizer in optimizers_.values():
            optimizer.step()
    for name, value in modules["net"].state_dict().items():
        torch.testing.assert_close(again["net"].state_dict()[name], value, rtol=0, atol=0)


def test_the_newest_two_stay(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]


def test_a_killed_save_leaves_the_old_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", die)
        save(tmp_path, 2)
    (tmp_path / ".step-00000003-abc").mkdir()  # as a process leaves it that had no time to clean up
    (tmp_path / "step-00000004").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000004"]


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(*args, **kwargs):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nand a long story")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"file write failed\); free space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_misfits_are_told(tmp_path):
    checkpoint = read_checkpoint(save(tmp_path, 1))
    with pytest.raises(UserError, match="weight of"):
        load_checkpoint(checkpoint, modules={"net": nn.Linear(5, 4)}, optimizers={})
    with pytest.raises(UserError, match="bias"):
        load_checkpoint(checkpoint, modules={"net": nn.Linear(4, 4, bias=False)}, optimizers={})
    with pytest.raises(UserError, match=r"critic\.safetensors is missing"):
        load_checkpoint(checkpoint, modules={"critic": nn.Linear(4, 4)}, optimizers={})
    for name, modules, optimizers in (
        ("net.safetensors", {"net": nn.Linear(4, 4)}, {}),
        ("muon.optimizer.pt", {}, trained(0)[1]),
    ):
        (checkpoint.path / name).write_bytes((checkpoint.path / name).read_bytes()[:50])
        with pytest.raises(UserError, match=r"is damaged .* delete step-00000001, and the run resumes from the one"):
            load_checkpoint(checkpoint, modules=modules, optimizers=optimizers)
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(tmp_path)


def test_weights_for_use(tmp_path):
    from causvid.tensor_files import read_tensors

    net = nn.Linear(3, 2)
    write_weights(tmp_path / "deep/net.safetensors", net, {"made": "here"}, torch.float16)
    torch.testing.assert_close(read_tensors(tmp_path / "deep/net.safetensors")["weight"], net.weight.detach().half())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["net.safetensors"]


def test_a_run_refuses_other_settings_and_forgets_untaken_steps(tmp_path):
    run = Run(tmp_path, Config(), data="abc")
    assert run.checkpoint is None
    for step in (1, 2, 3):
        run.log(step, loss=0.5)
    save_checkpoint(tmp_path / "checkpoints", 2, modules={}, optimizers={}, state={}, about=run.about)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut off in the middle of a line
    again = Run(tmp_path, Config(), data="abc")
    assert again.checkpoint is not None and again.checkpoint.step == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    with pytest.raises(UserError, match=r"width was 4, is 5.*--run-dir"):
        Run(tmp_path, Config(width=5), data="abc")


def test_a_run_killed_before_its_first_checkpoint_takes_all_steps_again(tmp_path):
    Run(tmp_path, Config(), data="abc").log(1, loss=0.5)
    Run(tmp_path, Config(), data="abc").log(1, loss=0.5)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_other_data_is_told(tmp_path, capsys):
    run = Run(tmp_path, Config(), data="abc")
    save_checkpoint(tmp_path / "checkpoints", 2, modules={}, optimizers={}, state={}, about=run.about)
    Run(tmp_path, Config(), data="abd")
    assert "the data differs" in capsys.readouterr().err


def test_budget(monkeypatch):
    assert [Budget(steps=4).progress(step) for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert Budget(minutes=1.0, seconds_before=30.0).progress(0) == pytest.approx(0.5, abs=0.01)
    assert Budget(minutes=1.0, steps=10, seconds_before=30.0).progress(9) == pytest.approx(0.9)
    with pytest.raises(UserError, match="--minutes or --steps"):
        Budget()
    for limits in ({"minutes": 0.0}, {"steps": -1}, {"minutes": float("nan"), "steps": 3}):
        with pytest.raises(UserError, match="above 0"):
            Budget(**limits)
