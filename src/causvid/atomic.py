"""Files that are complete or not there: written under a temporary name in their own folder, renamed at the end.

    with all_or_nothing(folder) as temporary:
        write_tensors(temporary("a.safetensors"), ...)
        write_tensors(temporary("b.safetensors"), ...)

A failure on the way (a full disk, an interrupt) leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from causvid.errors import UserError


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Hands out temporary paths for names in `folder`; on success all are renamed, on failure all are removed."""
    made: dict[Path, Path] = {}

    def temporary(name: str) -> Path:
        path = folder / f".{name}.{os.getpid()}.partial"
        made[path] = folder / name
        return path

    new_folders = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path in made:
            _flush_to_disk(path)
        for path, final in made.items():
            path.replace(final)
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for empty in new_folders:
            with contextlib.suppress(OSError):
                empty.rmdir()
        if isinstance(error, OSError | SafetensorError):
            reason = str(error).split("\n")[0][:120]
            raise UserError(f"could not write into {folder} ({reason}); free space or choose another place.") from None
        raise


def _flush_to_disk(path: Path) -> None:
    """A renamed file must not turn out empty after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Copies: the file must not share storage between names, and the source may be a file that this one replaces."""
    plain = {name: t.detach().to("cpu", dtype or t.dtype, copy=True).contiguous() for name, t in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(plain, path, metadata=metadata)
    path.chmod(mode)  # safetensors makes files that only their owner may read
