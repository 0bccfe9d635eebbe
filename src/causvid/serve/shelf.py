"""Sessions that had to leave memory, as takes on disk. Whoever comes back to one finds it where it was."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from causvid.take import SUFFIX, Take


@dataclass(frozen=True)
class Put:
    path: Path
    size: int
    at: float


class Shelf:
    """Holds so many bytes; the oldest takes make room for new ones."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="causvid-shelf-")
        self._puts: dict[str, Put] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._puts)

    def __contains__(self, name: str) -> bool:
        return name in self._puts

    @property
    def nbytes(self) -> int:
        return sum(put.size for put in self._puts.values())

    def put(self, name: str, take: Take) -> None:
        path = take.save(Path(self._folder.name) / f"{len(self._puts)}-{time.monotonic_ns()}{SUFFIX}")
        self._puts[name] = Put(path, path.stat().st_size, time.monotonic())
        while self.nbytes > self.max_bytes:
            self._drop(next(iter(self._puts)))

    def pop(self, name: str) -> Take:
        take = Take.load(self._puts[name].path)
        self._drop(name)
        return take

    def forget(self, seconds: float) -> None:
        """Drop what nobody has asked for that long."""
        old = [name for name, put in self._puts.items() if time.monotonic() - put.at > seconds]
        for name in old:
            self._drop(name)

    def close(self) -> None:
        self._puts.clear()
        self._folder.cleanup()

    def _drop(self, name: str) -> None:
        self._puts.pop(name).path.unlink(missing_ok=True)
