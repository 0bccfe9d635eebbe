"""A run folder is the interface: config.json, env.json, metrics.jsonl, checkpoints/, samples/. Same command: resume.

Any tool can read it; nothing needs a server or an account.
"""

from __future__ import annotations

import json
import math
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console

from causvid import config
from causvid.atomic import whole_file
from causvid.errors import UserError
from causvid.training import parallel
from causvid.training.checkpoint import Checkpoint, list_checkpoints, read_checkpoint


@dataclass
class Budget:
    """How long a run lasts: in minutes of training, in steps, or until the first of the two is used up."""

    minutes: float | None = None
    steps: int | None = None
    seconds_before: float = 0.0  # of training in earlier sittings of the same run
    _start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise UserError("a run needs an end: give --minutes or --steps.")
        if any(limit is not None and not limit > 0 for limit in (self.minutes, self.steps)):
            raise UserError("--minutes and --steps say how much to train in all; give a number above 0.")

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """0 at the start, 1 at the end. The same on every rank."""
        parts = [step / self.steps] if self.steps is not None else []
        if self.minutes is not None:
            parts.append(parallel.first_decides(self.seconds / (60 * self.minutes)))
        return min(1.0, max(parts))


class Run:
    """One sitting of a run: opens the folder, refuses another config, hands out the newest checkpoint."""

    def __init__(self, folder: Path, cfg: Any, *, data: str) -> None:
        """`data` names what it learns from, down to the bytes; a change of it is told, not refused."""
        self.folder, self.data = folder, data
        self._cfg_type = type(cfg)
        self.config = config.to_json(cfg)
        self.commit = commit_of_package()
        self.console = Console(stderr=True, quiet=not parallel.is_first())
        newest = list_checkpoints(folder / "checkpoints")[-1:]
        self.checkpoint: Checkpoint | None = read_checkpoint(newest[0]) if newest else None
        self._last_line = 0.0
        if parallel.is_first():
            self._open()
        parallel.wait_for_all()

    @property
    def about(self) -> dict[str, Any]:
        """What every checkpoint carries."""
        return {"config": self.config, "commit": self.commit, "data": self.data}

    def log(self, step: int, **values: float) -> None:
        """One line of metrics.jsonl."""
        if parallel.is_first():
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def status(self, text: str, every: float = 0.0) -> None:
        """Tell the person at the terminal, at most once in `every` seconds."""
        if time.monotonic() - self._last_line >= every:
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False, markup=False)

    def _open(self) -> None:
        for name in ("checkpoints", "samples"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        file = self.folder / "config.json"
        if file.exists():
            changes = config.difference(config.completed(self._cfg_type, json.loads(file.read_text())), self.config)
            if changes:
                path, (before, now) = next(iter(changes.items()))
                raise UserError(
                    f"{self.folder} holds a run with other settings ({path} was {before!r}, is {now!r}); "
                    "resume it with the same settings, or choose another --run-dir."
                )
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(self.config, indent=1) + "\n")
        with whole_file(self.folder / "env.json") as temporary:
            temporary.write_text(json.dumps(environment(self.commit), indent=1) + "\n")
        if self.checkpoint is not None and self.checkpoint.about["data"] != self.data:
            self.console.print("the data differs from what this run started with: resuming on the new data")
        _forget_metrics_after(self.folder / "metrics.jsonl", self.checkpoint.step if self.checkpoint else 0)


def environment(commit: str | None) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": parallel.num_ranks(),
        "commit": commit,
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit_of_package() -> str | None:
    """The commit of the checkout the package runs from, marked + where files differ from it; None without one."""
    ask = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*ask, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


@runtime_checkable
class Sitting(Protocol):
    """What steps are taken of: where a run stands, on this process."""

    step: int
    seconds: float  # of training, those of earlier sittings included

    def take_step(self, progress: float) -> None: ...

    def save(self) -> None: ...


def take_steps(
    sitting: Sitting,
    budget: Budget,
    *,
    save_minutes: float,
    show_minutes: float = math.inf,
    show: Callable[[float], None] = lambda progress: None,
    hand_on: Callable[[], None] = lambda: None,
) -> bool:
    """Train until the budget is used up or somebody interrupts: save and show every so many minutes, and at the end.
    `hand_on` writes what other stages read, before the last showing: a sheet that fails costs no more than itself.

    Returns whether it came to the end. Who interrupts does not want to wait: that sitting is saved, and shows nothing
    more. All ranks do the same, at the same steps."""
    last_save = last_show = budget.seconds
    with stop_signal() as stopped:
        while (progress := budget.progress(sitting.step)) < 1 and not parallel.first_decides(len(stopped)):
            sitting.take_step(progress)
            sitting.seconds = budget.seconds
            if parallel.first_decides(budget.seconds - last_save) > 60 * save_minutes:
                sitting.save()
                last_save = budget.seconds
            if parallel.first_decides(budget.seconds - last_show) > 60 * show_minutes:
                show(progress)
                last_show = budget.seconds
    sitting.save()
    hand_on()
    finished = not parallel.first_decides(len(stopped))
    if finished:
        show(budget.progress(sitting.step))
    return finished


@contextmanager
def stop_signal() -> Iterator[list[int]]:
    """The list becomes non-empty at ^C or TERM, so that a loop can end after its step and save."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in names}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forget_metrics_after(file: Path, step: int) -> None:
    """Steps that a killed sitting took after its last checkpoint will be taken again."""
    if file.exists():
        whole = [line for line in file.read_text().splitlines() if line.endswith("}")]
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        with whole_file(file) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))
