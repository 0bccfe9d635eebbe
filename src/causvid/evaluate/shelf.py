"""What was made once is kept: clips and readings on disk, each under a name, so an interruption costs one of them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from causvid.atomic import whole_file
from causvid.errors import UserError

Arrays = dict[str, np.ndarray]


class Shelf:
    """A folder of named arrays. A file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.npz"

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        path = self.path(name)
        if not path.exists():
            values = make()
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **values)  # type: ignore[arg-type]
            return values
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it, and it is made again") from None

    def frames(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """One clip, uint8 [F, H, W, 3], without loss."""
        return self.get(name, lambda: {"frames": make()})["frames"]
