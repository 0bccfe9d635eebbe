"""Vista: a procedural, captioned world of living landscapes, with the truth of every frame."""

from causvid.worlds.vista.captions import caption, caption_at, describe, timeline_prompts, vocabulary
from causvid.worlds.vista.controls import blockout, relight, sketch
from causvid.worlds.vista.parsing import Parsed, parse_caption
from causvid.worlds.vista.render import class_maps, patch_truth, render
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
from causvid.worlds.vista.wording import rephrase, scene_from_prompt

__all__ = [
    "BIOMES",
    "CAMERAS",
    "COLOURS",
    "HEROES",
    "LIGHTS",
    "MOTIONS",
    "SPLITS",
    "WEATHERS",
    "Event",
    "Parsed",
    "Scene",
    "Second",
    "State",
    "blockout",
    "caption",
    "caption_at",
    "class_maps",
    "describe",
    "held_out",
    "parse_caption",
    "patch_truth",
    "relight",
    "rephrase",
    "render",
    "sample_scene",
    "sample_timeline",
    "scene_from_prompt",
    "sketch",
    "timeline_prompts",
    "timeline_scene",
    "vocabulary",
]
