"""Files that are complete or not there: written under a temporary name in their own folder, renamed at the end.

    with all_or_nothing(folder) as temporary:
        write_tensors(temporary("a.safetensors"), ...)
        write_tensors(temporary("b.safetensors"), ...)

    with whole_file(path) as temporary:
        temporary.write_text(...)

A failure on the way (a full disk, an interrupt) leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from causvid.errors import UserError


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Hands out temporary paths, of empty files, for names in `folder`; on success all are renamed, on failure all are
    removed."""
    made: dict[Path, tuple[Path, int]] = {}  # -> its final name, and who may read it
    new_folders: list[Path] = []

    def temporary(name: str) -> Path:
        final = folder / name
        path = folder / f".{final.stem}-{uuid4().hex[:8]}{final.suffix}"  # writers go by the suffix
        path.touch(exist_ok=False)
        made[path] = final, path.stat().st_mode
        return path

    try:
        new_folders += [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path in made:
            _flush_to_disk(path)
        for path, (final, mode) in made.items():
            path.chmod(mode)  # some writers make files that only their owner may read
            path.replace(final)
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for empty in new_folders:
            with contextlib.suppress(OSError):
                empty.rmdir()
        if isinstance(error, OSError | SafetensorError):
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0][:120]
            raise UserError(f"cannot write into {folder} ({reason}); free space or choose another place.") from None
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """`all_or_nothing` for a single file: its temporary path."""
    with all_or_nothing(path.parent) as temporary:
        yield temporary(path.name)


def _flush_to_disk(path: Path) -> None:
    """A renamed file must not turn out empty after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
