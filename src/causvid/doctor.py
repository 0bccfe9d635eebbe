"""What this machine can run, in words."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

EXTRAS = {
    "wan": ("diffusers", "transformers", "ftfy"),
    "serve": ("fastapi", "uvicorn", "websockets"),
    "eval": ("cv2", "matplotlib"),
}
USES = {
    "wan": "published Wan autoencoders and umT5 text",
    "serve": "the live studio in the browser",
    "eval": "optical-flow metrics and figures",
}
GIB = 1024**3

# network parameters, in billions, and seconds of attention cache: 30 or 40 layers, 21 frames of 480p, bf16
WAN_SIZES = (("Wan2.1 1.3B at 480p", 1.42, 6.0), ("Wan2.2 5B at 720p", 5.0, 9.7), ("Wan2.1 14B at 480p", 14.3, 26.8))


def examine() -> Iterator[str]:
    """One finding per line, remedies included."""
    import torch

    from causvid import __version__
    from causvid.threads import choose_threads

    yield f"causvid {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = _memory()
    yield f"processor: {cores} cores; {choose_threads()} threads are fastest for a streaming step right now"
    if memory:
        yield f"memory: {memory / GIB:.1f} GiB free; disk: {shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free here"
    yield from _devices(memory)
    yield from _packages()
    yield _vista()


def _devices(memory: int | None) -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield "GPU: none that torch can use; Vista streams on the CPU, Wan-size models need a CUDA device"
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        for name, parameters, cache in WAN_SIZES:
            need = 2 * parameters + cache + 2
            verdict = "fits" if need * 1e9 < free else "does not fit"
            yield f"  {name}: {verdict}; needs about {need:.0f} GB in bfloat16 with a full cache of 21 frames"


def _packages() -> Iterator[str]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            yield f"extra [{extra}]: {', '.join(missing)} missing; for {USES[extra]}: pip install 'causvid[{extra}]'"
        else:
            yield f"extra [{extra}]: installed ({USES[extra]})"


def _vista() -> str:
    folder = Path(__file__).parent / "weights" / "vista"
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "model.json").is_file():
        return "Vista: its weights are not part of this installation; reinstall causvid"
    size = sum(file.stat().st_size for file in files) / 1e6
    return f"Vista: {len(files)} weight files, {size:.0f} MB: {', '.join(file.stem for file in files)}"


def _memory() -> int | None:
    """Bytes that can be taken, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
