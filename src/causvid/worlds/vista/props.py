"""Things that stand in a landscape, each drawn once into a strip. `foot` is the y of the ground under it."""

import numpy as np

from causvid.worlds.vista.canvas import F32, Strip, ink, limb_distance, triangle_distance
from causvid.worlds.vista.streams import splitmix64
from causvid.worlds.vista.truth import KIND
from causvid.worlds.vista.window import box_distance, ellipse_distance

_TREE, _HOUSE = KIND["tree"], KIND["building"]


def _lit(colour: np.ndarray, shade: np.ndarray) -> list[np.ndarray]:
    return [c * shade for c in colour]


def round_tree(strip: Strip, x: float, foot: float, size: float, colour: np.ndarray) -> None:
    patch = strip.patch(x, foot, 6 * size, 6 * size, 10.5 * size, 1)
    if patch is None:
        return
    s, u, v = F32(size), patch.u, patch.v
    patch.fill(box_distance(u, v + 2.5 * s, 0.7 * size, 2.5 * size), ink(0.36, 0.24, 0.15), _TREE)
    shade = 1 + F32(0.22) * np.clip((u * F32(0.5) - v - 5.5 * s) / (3 * s), -1, 1)
    for dx, dy, radius, bright in (
        (0, -6.2, 3.3, 0.86),
        (-1.9, -5.2, 2.5, 0.80),
        (2.0, -5.0, 2.4, 0.92),
        (0.5, -7.6, 2.3, 1.10),
    ):
        distance = np.sqrt((u - F32(dx) * s) ** 2 + (v - F32(dy) * s) ** 2) - F32(radius) * s
        patch.fill(distance, _lit(colour * F32(bright), shade), _TREE)


def pine(strip: Strip, x: float, foot: float, size: float, colour: np.ndarray, snow: float) -> None:
    patch = strip.patch(x, foot, 4.5 * size, 4.5 * size, 11.5 * size, 1)
    if patch is None:
        return
    s, u, v = F32(size), patch.u, patch.v
    patch.fill(box_distance(u, v + 1.5 * s, 0.6 * size, 1.5 * size), ink(0.33, 0.22, 0.16), _TREE)
    shade = 1 + F32(0.25) * np.clip(u / (2 * s), -1, 1) + 0 * v
    for top, low, width in ((-6.2, -1.6, 3.6), (-8.6, -4.2, 2.9), (-10.8, -6.8, 2.1)):
        side = np.abs(u) - (v - F32(top) * s) / (F32(low - top) * s) * F32(width) * s
        patch.fill(np.maximum(side, np.maximum(v - F32(low) * s, F32(top) * s - v)), _lit(colour, shade), _TREE)
        if snow > 0:
            cap = np.maximum(side, np.maximum(v - F32((top + low) / 2) * s, F32(top) * s - v))
            patch.fill(cap, _lit(ink(0.97, 0.98, 1.0), shade), _TREE, alpha=snow)


def cactus(strip: Strip, x: float, foot: float, size: float) -> None:
    patch = strip.patch(x, foot, 4 * size, 4 * size, 8.5 * size, 1.2 * size)
    if patch is None:
        return
    u, v = patch.u / F32(size), patch.v / F32(size)
    sticks = (
        (0, 0, 0, -7, 1.1),
        (0, -3, 2.6, -3, 0.7),
        (2.6, -3, 2.6, -5.4, 0.7),
        (0, -2.2, -2.4, -2.2, 0.7),
        (-2.4, -2.2, -2.4, -4.3, 0.7),
    )
    distance = np.minimum.reduce([limb_distance(u, v, *stick) for stick in sticks]) * F32(size)
    patch.fill(distance, _lit(ink(0.22, 0.52, 0.26), 1 + F32(0.3) * np.clip(u / F32(1.2), -1, 1)), _TREE)


def palm(strip: Strip, x: float, foot: float, size: float, mirrored: bool) -> None:
    patch = strip.patch(x, foot, 5 * size, 5 * size, 9 * size, 1)
    if patch is None:
        return
    u, v = patch.u / F32(-size if mirrored else size), patch.v / F32(size)
    patch.fill(limb_distance(u, v, 0, 0, 0.9, -5.5, 0.5) * F32(size), ink(0.42, 0.30, 0.20), _TREE)
    for ax, ay in ((-2.0, -5.0), (-1.6, -7.2), (1.2, -7.9), (3.6, -6.8), (3.8, -4.6)):
        patch.fill(limb_distance(u, v, 0.9, -5.8, ax, ay, 0.6) * F32(size), ink(0.20, 0.46, 0.26), _TREE)


def house(strip: Strip, x: float, foot: float, size: float, wall: np.ndarray) -> None:
    patch = strip.patch(x, foot, 6 * size, 6 * size, 9 * size, 0.5)
    if patch is None:
        return
    s, u, v = F32(size), patch.u, patch.v
    patch.fill(
        box_distance(u, v + 2.5 * s, 4 * size, 2.5 * size),
        _lit(wall, 1 + F32(0.08) * np.clip(u / (4 * s), -1, 1)),
        _HOUSE,
    )
    eaves = np.clip((v + F32(8.2) * s) / (F32(3.4) * s), 0, 1.2) * 5 * s
    roof = np.maximum(np.abs(u) - eaves, np.maximum(v + F32(4.8) * s, F32(-8.2) * s - v))
    patch.fill(roof, ink(0.62, 0.27, 0.22), _HOUSE)
    for wx in (-2, 2):
        pane = box_distance(u - F32(wx) * s, v + F32(2.8) * s, 0.9 * size, 1.0 * size)
        patch.fill(pane, ink(0.35, 0.45, 0.55), _HOUSE)
        patch.shine(pane, ink(1.0, 0.78, 0.35))


def tower(
    strip: Strip,
    x: float,
    foot: float,
    width: float,
    height: float,
    colour: np.ndarray,
    lit: float,
    pitch: float,
    draw: float,
) -> None:
    """A block of flats whose windows sit on a grid; which are lit at night follows from `draw` alone."""
    patch = strip.patch(x, foot, width / 2, width / 2, height, 0)
    if patch is None:
        return
    u, v = patch.u, patch.v
    outline = np.maximum(np.abs(u) - F32(width / 2), np.maximum(v, F32(-height) - v))
    patch.fill(outline, _lit(colour, 1 + F32(0.18) * np.clip(u / F32(width / 2), -1, 1) + 0 * v), _HOUSE)
    columns, floors = max(1, int((width - 1) // pitch)), max(1, int((height - 2) // (pitch + 0.5)))
    across, down = (u + F32(width / 2 - 0.5)) / F32(pitch), (v + F32(height - 1.2)) / F32(pitch + 0.5)
    pane = ((np.mod(across, 1) < 0.62) & (across > 0) & (across < columns)) & (
        (np.mod(down, 1) < 0.55) & (down > 0) & (down < floors)
    )
    numbers = splitmix64(np.arange(floors * columns, dtype=np.uint64) ^ np.uint64(int(draw * 2**53)))
    on = ((numbers >> np.uint64(40)).astype(F32) * F32(2.0**-24) < lit).astype(F32).reshape(floors, columns)
    glow = on[np.clip(down.astype(int), 0, floors - 1), np.clip(across.astype(int), 0, columns - 1)]
    patch.lay(pane.astype(F32) * F32(0.75), ink(0.45, 0.58, 0.70), _HOUSE)
    patch.shine(np.where(pane & (glow > 0), F32(-9), F32(9)), ink(1.0, 0.80, 0.38))


def dot(strip: Strip, x: float, y: float, colour: np.ndarray) -> None:
    """A flower, a stone, a tuft."""
    patch = strip.patch(x, y, 1.6, 1.6, 1.4, 1.4)
    if patch is not None:
        patch.fill(np.hypot(patch.u / F32(1.2), patch.v) - F32(0.8), colour, KIND["ground"])


def bush(strip: Strip, x: float, foot: float, size: float, colour: np.ndarray, blossom: np.ndarray | None) -> None:
    patch = strip.patch(x, foot, 9.5 * size, 9.5 * size, 16 * size, 1)
    if patch is None:
        return
    s, u, v = F32(size), patch.u, patch.v
    shade = 1 + F32(0.30) * np.clip((u * F32(0.3) - v - 7 * s) / (7 * s), -1, 1)
    for dx, dy, rx, ry, bright in (
        (-4.2, -4.0, 4.6, 5.0, 0.78),
        (4.0, -4.2, 4.8, 5.4, 0.86),
        (-0.6, -8.4, 5.4, 6.2, 0.95),
        (0.6, -2.5, 6.5, 4.5, 0.88),
    ):
        patch.fill(
            ellipse_distance(u - F32(dx) * s, v - F32(dy) * s, rx * size, ry * size), _lit(colour * F32(bright), shade)
        )
    if blossom is not None:
        for dx, dy in ((-4.6, -5.6), (-1.2, -11.2), (2.4, -8.0), (5.4, -5.0), (-0.4, -4.6)):
            patch.fill(np.hypot(u - F32(dx) * s, v - F32(dy) * s) - F32(1.0) * s, blossom)


def post(strip: Strip, x: float, foot: float, height: float, width: float, colour: np.ndarray, lamp: bool) -> None:
    """A pole; with a lamp it lights up at night."""
    patch = strip.patch(x, foot, 5, 5, height + 5, 1)
    if patch is None:
        return
    u, v = patch.u, patch.v
    shade = 1 + F32(0.35) * np.clip(u / F32(width), -1, 1) + 0 * v
    patch.fill(box_distance(u, v + F32(height / 2), width, height / 2, width * 0.6), _lit(colour, shade))
    if lamp:
        head = ellipse_distance(u, v + F32(height + 1.2), 3.0, 2.6)
        patch.fill(head, ink(0.96, 0.93, 0.80))
        patch.shine(head, ink(0.9, 0.75, 0.35))


def rock(strip: Strip, x: float, foot: float, size: float, colour: np.ndarray) -> None:
    patch = strip.patch(x, foot, 10 * size, 10 * size, 13 * size, 1)
    if patch is None:
        return
    s, u, v = F32(size), patch.u / F32(size), patch.v / F32(size)
    shade = 1 + F32(0.25) * np.clip((u * F32(0.6) - v - 5) / 6, -1, 1)
    patch.fill(triangle_distance(u, v, (-8, 1), (-5.5, -7), (-1, -11), (4, -9), (8.5, 1)) * s, _lit(colour, shade))
    patch.fill(triangle_distance(u, v, (1, 1), (3, -6), (6.5, -7.5), (9.5, 1)) * s, _lit(colour * F32(0.85), shade))
