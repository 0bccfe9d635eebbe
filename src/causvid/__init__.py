"""causvid: causal video diffusion. A bidirectional teacher becomes a four-step student that streams.

    import causvid

    model = causvid.load("vista")
    session = model.session("a red car drives through the city at night", seed=1)
    for chunk in session:
        show(chunk.frames)

Importing the package imports no torch; the names below do, when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causvid.bundle import Model
    from causvid.cache import CachePolicy
    from causvid.loading import load
    from causvid.media import read_image, read_video, write_video
    from causvid.rollout import RolloutConfig
    from causvid.session import Chunk, Session

_HOMES = {
    "load": "causvid.loading",
    "Model": "causvid.bundle",
    "Session": "causvid.session",
    "Chunk": "causvid.session",
    "CachePolicy": "causvid.cache",
    "RolloutConfig": "causvid.rollout",
    "write_video": "causvid.media",
    "read_video": "causvid.media",
    "read_image": "causvid.media",
}

__version__ = "0.1.0"
__all__ = [
    "CachePolicy",
    "Chunk",
    "Model",
    "RolloutConfig",
    "Session",
    "load",
    "read_image",
    "read_video",
    "write_video",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'causvid' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
