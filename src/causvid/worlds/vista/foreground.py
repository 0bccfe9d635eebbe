"""Posts, bushes and rocks close to the camera, which hide the hero for a moment when the camera moves."""

import numpy as np

from causvid.worlds.vista import props
from causvid.worlds.vista.canvas import F32, HEIGHT, Strip, View, ink
from causvid.worlds.vista.scenery import FOREGROUND_DEPTH, between, cells
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.truth import KIND

SPACING = 96.0  # units: with a camera at rest the nearest thing is half of this away from the hero
FLOOR = HEIGHT + 3


def has_foreground(seed: int) -> bool:
    return Stream(seed, "foreground").chance(0.55)


def foreground_strip(biome: str, seed: int, view: View, left: np.ndarray, hero_x: float) -> tuple[Strip, np.ndarray]:
    """The strip, and the world x of the picture's left edge in it [F]; `left` is the camera at parallax 1."""
    edge = FOREGROUND_DEPTH * left - hero_x
    strip = Strip(view, float(edge.min()), float(edge.max()) + view.wide, KIND["foreground"])
    for x, u in cells(Stream(seed, f"foreground {biome}"), strip, SPACING, 0.16):
        _place(biome, strip, x, u)
    strip.kind[:] = KIND["foreground"]  # whatever grows there
    return strip, edge


def _place(biome: str, strip: Strip, x: float, u: np.ndarray) -> None:
    size = between(u[1], 0.95, 1.25)
    match biome:
        case "meadow" | "forest":
            green = biome == "meadow"
            leaf = ink(0.13, 0.36, 0.13) if green else ink(0.52, 0.20, 0.07)
            blossom = (
                (ink(0.95, 0.45, 0.60) if u[2] < 0.5 else ink(0.98, 0.90, 0.40)) if green else ink(0.80, 0.46, 0.12)
            )
            if u[0] < 0.65:
                props.bush(strip, x, FLOOR, 1.35 * size, leaf, blossom)
            elif green:
                for k in (-1, 0, 1):
                    props.post(strip, x + 9 * k, FLOOR, 22 * size, 1.6, ink(0.42, 0.29, 0.18), False)
            else:
                props.post(strip, x, FLOOR, HEIGHT + 10, 3.6, ink(0.30, 0.20, 0.14), False)
        case "desert":
            if u[0] < 0.5:
                props.rock(strip, x, FLOOR, 1.5 * size, ink(0.56, 0.36, 0.26))
            else:
                props.cactus(strip, x, FLOOR, 4.2 * size)
        case "snow":
            if u[0] < 0.5:
                props.pine(strip, x, FLOOR + 2, 3.2 * size, ink(0.08, 0.26, 0.22), 0.85)
            else:
                props.bush(strip, x, FLOOR, 1.3 * size, ink(0.84, 0.89, 0.97), None)
        case "sea":
            for k, tall in ((-1, 20), (0, 27), (1, 17)):
                props.post(strip, x + 6.5 * k, FLOOR, tall * size, 2.2, ink(0.33, 0.24, 0.18), False)
        case "city":
            if u[0] < 0.6:
                props.post(strip, x, FLOOR, 40 * size, 1.5, ink(0.20, 0.22, 0.27), True)
            else:
                props.bush(strip, x, FLOOR, 1.2 * size, ink(0.16, 0.34, 0.18) * F32(1), None)
