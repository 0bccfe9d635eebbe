"""Vista: a procedural, captioned world of living landscapes, with the truth of every frame."""

from causvid.worlds.vista.render import patch_truth, render
from causvid.worlds.vista.sampling import SPLITS, held_out, sample_scene, sample_timeline, timeline_scene
from causvid.worlds.vista.scene import (
    BIOMES,
    CAMERAS,
    COLOURS,
    HEROES,
    LIGHTS,
    MOTIONS,
    WEATHERS,
    Event,
    Scene,
    Second,
)
from causvid.worlds.vista.tracks import State

__all__ = [
    "BIOMES", "CAMERAS", "COLOURS", "HEROES", "LIGHTS", "MOTIONS", "SPLITS", "WEATHERS",
    "Event", "Scene", "Second", "State",
    "held_out", "patch_truth", "render", "sample_scene", "sample_timeline", "timeline_scene",
]  # fmt: skip
