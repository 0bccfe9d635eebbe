"""Controls for video-to-video: what a generator is given, and the exact clip that it should turn it into."""

from dataclasses import replace

import numpy as np

from causvid.worlds.vista.canvas import F32
from causvid.worlds.vista.scene import Scene
from causvid.worlds.vista.truth import KINDS


def sketch(frames: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Dark lines on paper where neighbouring pixels differ, for frames uint8 [F, H, W, 3] of any origin."""
    grey = frames.astype(F32).mean(-1) + 0.6 * frames.max(-1).astype(F32) - 0.6 * frames.min(-1).astype(F32)
    right, down = np.diff(grey, axis=2, append=grey[:, :, -1:]), np.diff(grey, axis=1, append=grey[:, -1:])
    edge = np.sqrt(right * right + down * down)
    local = 12 + 0.8 * edge.mean((1, 2), keepdims=True)  # dark scenes draw as clearly as bright ones
    ink = np.clip((edge / local - 1) * strength, 0, 1)[..., None]
    paper = np.array([252, 249, 242], F32)
    return np.clip(paper * (1 - ink) + 12 * ink + 0.5, 0, 255).astype(np.uint8)


def relight(scene: Scene, light: str | None = None, weather: str | None = None) -> Scene:
    """The same clip under another light or weather: same layout, same motion, so its render is the exact target."""
    kinds = {kind for kind, value in (("light", light), ("weather", weather)) if value is not None}
    events = tuple(event for event in scene.events if event.kind not in kinds)
    return replace(scene, light=light or scene.light, weather=weather or scene.weather, events=events)


# One flat colour per class, as a child would fill in a sketch.
_FLAT = dict(
    zip(
        KINDS,
        ((122, 190, 245), (245, 248, 252), (255, 236, 150), (240, 238, 215), (120, 160, 140), (60, 130, 60),
         (165, 140, 125), (150, 150, 110), (40, 105, 150), (225, 150, 60), (215, 60, 60), (60, 60, 60)),
        strict=True,
    )
)  # fmt: skip


def blockout(maps: np.ndarray) -> np.ndarray:
    """Flat colours for class maps [..., H, W]: render.class_maps gives them per pixel, State.patches per patch."""
    return np.array([_FLAT[kind] for kind in KINDS], np.uint8)[maps]
