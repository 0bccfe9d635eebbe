"""Reading a clip without any training: colours, sums and shifts of pixels, and the renderer's own constants.

It cannot be fooled through gradients, and it is honest about its reach: the light of the sky, whether something
falls, and, once told where the hero is, the hero's paint, its place to a fraction of a pixel, its area and how steady
they are.
It does not find heroes: too much of the scenery has their colours.
"""

from dataclasses import dataclass

import numpy as np

from causvid.evaluate.metrics import LUMA
from causvid.worlds.vista.palette import COLOUR_INKS, Lighting, lighting
from causvid.worlds.vista.scene import COLOURS, LIGHTS, WEATHERS
from causvid.worlds.vista.sky import SKY

WINDOW = 24  # side of the square, in pixels of a 64 pixel picture, that holds a hero
NEAR = 0.10  # distance in RGB (0 to 1) at which a pixel counts half as painted
FOGS = (0.0, 0.25, 0.5)  # how much of a hero's colour the air may replace
STACKS_OF_PAINT = 3
SKY_NEAR = 0.07
SKY_ROWS = 20  # the highest rows, where hills and towers do not reach


@dataclass
class Paint:
    """The hero's paint in a window that follows it."""

    colour: str
    confidence: float  # lead over the next paint, 0 to 1
    place: np.ndarray  # [F, 2] x, y of the painted pixels' centre in picture heights
    area: np.ndarray  # [F] painted share of the window
    share: np.ndarray  # [F] share of `colour` among all paint that the surroundings do not have


def _light(light: str, weather: str) -> Lighting:
    there = [light == "night", weather == "rain", weather == "snow", weather == "fog"]
    night, rain, snow, fog = np.array(there, np.float32)[:, None]
    return lighting(np.array([float(LIGHTS.index(light))]), night, rain, snow, fog, "meadow")


def _sky_profiles() -> dict[str, np.ndarray]:
    """The sky's colour in the highest rows for every weather, [weathers, rows, 3]."""
    y = (np.arange(SKY_ROWS) + 0.5) / SKY
    upper = np.clip(2 * y, 0, 1)[:, None]
    profiles = {}
    for light in LIGHTS:
        now = [_light(light, weather) for weather in WEATHERS]
        profiles[light] = np.stack([n.top * (1 - upper) + n.middle * upper for n in now])
    return profiles


_SKIES = _sky_profiles()


def read_light(frames: np.ndarray) -> tuple[str, float]:
    """The light whose sky most pixels of the highest rows agree with, and its lead over the next, 0 to 1."""
    scale = frames.shape[1] / 64
    rows = ((np.arange(SKY_ROWS) + 0.5) * scale).astype(int)
    sky = frames[:: max(1, len(frames) // 8), rows] / 255.0
    shares = {
        light: max(float((np.abs(sky - profile[:, None]).max(-1) < SKY_NEAR).mean()) for profile in profiles)
        for light, profiles in _SKIES.items()
    }
    ranked = sorted(shares.values(), reverse=True)
    return max(shares, key=lambda light: shares[light]), (ranked[0] - ranked[1]) / max(ranked[0], 1e-6)


def read_paint(frames: np.ndarray, places: np.ndarray, light: str) -> Paint:
    """The paint of what is at `places` [F, 2] (picture heights). Frames uint8 [F, H, W, 3]."""
    inks = np.concatenate([_inks(light, fog) for fog in FOGS])  # [fogs * 8, 3]
    size = round(WINDOW * frames.shape[1] / 64)
    masses, corners = [], []
    for frame, place in zip(frames, places):
        inside, ring, corner = _window(frame, place * frames.shape[1], size)
        # what the surroundings are painted with says nothing: a green meadow is not a green car
        masses.append(np.maximum(_painted(inside, inks) - _painted(ring, inks).mean((0, 1)), 0))
        corners.append(corner)
    totals = np.array([mass.sum((0, 1)) for mass in masses])  # [F, fogs * 8]
    best = int(totals.sum(0).argmax())
    fog = best // len(COLOURS) * len(COLOURS)
    same_fog = totals[:, fog : fog + len(COLOURS)]
    ranked = np.sort(same_fog.sum(0))[::-1]
    centre = np.array([_centre(mass[..., best]) + corner for mass, corner in zip(masses, corners)])
    area = np.array([mass[..., best].mean() for mass in masses])
    share = totals[:, best] / np.maximum(same_fog.sum(1), 1e-6)
    lead = float((ranked[0] - ranked[1]) / max(ranked[0], 1e-6))
    return Paint(COLOURS[best - fog], lead, centre / frames.shape[1], area, share)


def second_opinion(frames: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """Light and the hero's paint as this sees them, numbers of LIGHTS and COLOURS, for every stack of three frames;
    `places` [stacks, 2] says where the hero is. Of a stack it looks at the middle, and paint is read from three."""
    middles = frames[1::3][: len(places)]
    lights = [read_light(middle[None])[0] for middle in middles]
    paints: list[str] = []
    for start in range(0, len(middles), STACKS_OF_PAINT):
        stacks = slice(start, start + STACKS_OF_PAINT)
        light = max(lights[stacks], key=lights[stacks].count)
        paints += [read_paint(middles[stacks], places[stacks], light).colour] * len(lights[stacks])
    return {"light": np.array([*map(LIGHTS.index, lights)]), "colour": np.array([*map(COLOURS.index, paints)])}


def _inks(light: str, fog: float) -> np.ndarray:
    """What the eight paints look like in that light, behind that much fog: [8, 3]"""
    now = _light(light, "clear" if fog == 0 else "fog")
    return np.stack([(1 - fog) * COLOUR_INKS[colour] * now.hero_tint[0] + fog * now.low[0] for colour in COLOURS])


def _window(frame: np.ndarray, centre: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A square around a place, the columns left and right of it, and its corner (x, y); kept inside the picture."""
    height, width = frame.shape[:2]
    left = int(np.clip(round(centre[0] - size / 2), 0, width - size))
    top = int(np.clip(round(centre[1] - size / 2), 0, height - size))
    rows = frame[top : top + size].astype(np.float32) / 255
    beside = np.concatenate(
        [rows[:, max(0, left - size // 2) : left], rows[:, left + size : left + size + size // 2]], 1
    )
    return rows[:, left : left + size], beside, np.array([left, top])


def _painted(pixels: np.ndarray, inks: np.ndarray) -> np.ndarray:
    """How much each pixel looks like each ink, whatever its shading: [..., 3] -> [..., 8]"""
    shade = np.clip(pixels @ inks.T / (inks * inks).sum(1), 0.7, 1.1)  # [..., 8]
    squared = np.square(pixels[..., None, :] - shade[..., None] * inks).sum(-1)
    return np.exp(-np.log(2) * squared / NEAR**2)


def _centre(mass: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: mass.shape[0], : mass.shape[1]] + 0.5
    return np.array([(mass * columns).sum(), (mass * rows).sum()]) / max(float(mass.sum()), 1e-6)


def _box_sums(mass: np.ndarray, size: int) -> np.ndarray:
    """Sums over squares: [F, H, W] -> [F, H-size+1, W-size+1]"""
    total = np.pad(mass, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    return total[:, size:, size:] - total[:, :-size, size:] - total[:, size:, :-size] + total[:, :-size, :-size]


def falling(frames: np.ndarray) -> float:
    """Do small bright things move down from frame to frame? Between 0 (noise, or nothing) and 1.

    Noise looks like snow in one frame but has nothing to do with the next frame's; scenery stays at its height."""
    luma = (frames @ LUMA).astype(np.float32)
    spots = luma - _soften(luma)
    spots -= np.median(spots, axis=0)  # what stands still
    spots = np.maximum(spots - 4, 0)
    best = []
    for a, b in zip(spots[:-1], spots[1:]):
        level = _correlations(a, b, range(-3, 4), (0,)).max()
        down = _correlations(a, b, range(-3, 4), (1, 2, 6)).max()
        best.append(max(0.0, down - max(0.0, level)))
    return float(np.mean(best))


def _correlations(a: np.ndarray, b: np.ndarray, sideways: range, down: tuple[int, ...]) -> np.ndarray:
    """Of `a` moved down and sideways with `b`."""
    size = np.sqrt((a * a).sum() * (b * b).sum()) + 1e-6
    return np.array([(np.roll(a, (dy, dx), (0, 1)) * b).sum() / size for dy in down for dx in sideways])


def _soften(luma: np.ndarray) -> np.ndarray:
    padded = np.pad(luma, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return _box_sums(padded, 5) / 25


def track_quality(paint: Paint) -> dict[str, float]:
    """What goes wrong with an object in time: unsteady place, breathing area, and colour that is not kept."""
    if len(paint.area) < 3:
        raise ValueError("a track needs three frames")
    jerk = np.diff(paint.place, n=2, axis=0) * 64
    return {
        "acceleration": float(np.sqrt(np.square(jerk).sum(1)).mean()),
        "area variation": float(paint.area.std() / max(float(paint.area.mean()), 1e-9)),
        "share": float(paint.share.mean()),
    }
