"""Words for the page: what a model knows, grouped so that one key changes one thing of a prompt."""

from __future__ import annotations

from typing import Any

from causvid.bundle import Model
from causvid.text.vista import VistaText

KEYS = {
    "d": ("light", "day"),
    "e": ("light", "sunset"),
    "n": ("light", "night"),
    "m": ("light", "dawn"),
    "c": ("weather", "clear"),
    "r": ("weather", "rain"),
    "s": ("weather", "snow"),
    "f": ("weather", "fog"),
}


def of(model: Model) -> dict[str, Any]:
    """examples: prompts. vocabulary: single words, and read_as: others that are read as some of them. groups: phrases
    that exclude each other, by name and value. keys: what changes one of them."""
    if not isinstance(model.text, VistaText):
        return {
            "examples": ["a city street in the rain", "a red car at night"],
            "vocabulary": [],
            "read_as": {},
            "groups": {},
            "keys": {},
        }
    from causvid.worlds.vista import phrases, sample_scene
    from causvid.worlds.vista.captions import caption, caption_at

    groups = {
        "light": phrases.LIGHT_WORDS,
        "weather": phrases.WEATHER_WORDS,
        "camera": phrases.CAMERA_WORDS,
        "colour": phrases.COLOUR_WORDS,
        "hero": phrases.HERO_WORDS,
    }
    chosen = [(group, value) for group, value in KEYS.values()]
    return {
        "examples": [
            caption_at(sample_scene(seed), 0.0, seed, drop=0.15)
            if seed % 4
            else caption(sample_scene(seed), seed, drop=0.15)  # some tell what comes later
            for seed in range(40)
        ],
        "vocabulary": sorted(model.text.vocabulary),
        "read_as": phrases.SYNONYMS,
        "groups": {
            name: {value: list(dict.fromkeys(words)) for value, words in values.items()}
            for name, values in groups.items()
        },
        "keys": {key: {"group": group, "value": value} for key, (group, value) in zip(KEYS, chosen)},
    }
