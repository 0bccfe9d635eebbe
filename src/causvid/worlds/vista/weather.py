"""What falls between the camera and the scene: rain, snowflakes and mist."""

import numpy as np

from causvid.worlds.vista.canvas import F32, HEIGHT, HORIZON, View
from causvid.worlds.vista.palette import Lighting
from causvid.worlds.vista.streams import Stream

RAIN_SPEED, RAIN_PERIOD, RAIN_SLANT = 72.0, 24.0, 0.30  # units a second, units, units sideways per unit down


def paint_fall(
    image: np.ndarray, seed: int, view: View, t: np.ndarray, camera: np.ndarray, light: Lighting, which: np.ndarray
) -> None:
    """Rain and snow, in front of everything."""
    if light.rain.max() > 0:
        _rain(image, seed, view, t, light, which)
    if light.snow.max() > 0:
        _snow(image, seed, view, t, camera, light, which)


def _rain(image: np.ndarray, seed: int, view: View, t: np.ndarray, light: Lighting, which: np.ndarray) -> None:
    """Drops repeat every third of a second, four frames at 12 a second: a codec can code that, but no random rain."""
    u = Stream(seed, "rain").cells(np.arange(int(view.wide * 0.30) + 1), 3)
    fallen = np.round(np.mod(t * RAIN_SPEED, RAIN_PERIOD), 3)
    sheets = {value: _rain_sheet(u, view, value) for value in set(fallen[light.rain[which] > 0])}
    tone = np.array([0.78, 0.86, 0.95], F32) * (F32(0.40) + F32(0.60) * light.tint.mean(1))[:, None]
    for i, moment in enumerate(which):
        if light.rain[moment] > 0:
            amount = sheets[fallen[i]] * (F32(0.50) * light.rain[moment])
            image[i] *= 1 - amount
            image[i] += amount * tone[moment][:, None, None]


def _rain_sheet(u: np.ndarray, view: View, fallen: float) -> np.ndarray:
    """Coverage [H, W] of slanted streaks that fall along their own slant."""
    length, s = 8.0, view.scale
    y = ((np.arange(view.height) + 0.5) / s)[None]
    x0, y0, bright = (column[:, None] for column in u.T)
    along = np.mod(y - y0 * RAIN_PERIOD - fallen, RAIN_PERIOD) / length
    profile = np.sqrt(np.clip(np.sin(np.clip(along, 0, 1) * np.pi), 0, 1)) * (along < 1) * (0.6 + 0.4 * bright)
    x = (x0 * (view.wide + RAIN_SLANT * HEIGHT) - RAIN_SLANT * y) * s  # left edge of the streak, pixels
    sheet = np.zeros(view.height * view.width, F32)
    rows = np.broadcast_to(np.arange(view.height)[None], x.shape)
    for near in range(int(np.ceil(s)) + 1):
        column = np.floor(x).astype(int) + near
        share = np.clip(s + 0.15 - np.abs(column + 0.5 - x - s / 2), 0, 1)
        inside = (column >= 0) & (column < view.width) & (profile > 0)
        np.maximum.at(sheet, (rows * view.width + column)[inside], (profile * share)[inside].astype(F32))
    return sheet.reshape(view.height, view.width)


def _snow(
    image: np.ndarray, seed: int, view: View, t: np.ndarray, camera: np.ndarray, light: Lighting, which: np.ndarray
) -> None:
    """Flakes of two units, each coming when the snowfall is thick enough for it."""
    count = int(HEIGHT * view.wide * 0.0070)
    u = Stream(seed, "snow").cells(np.arange(count), 5)
    near = 0.45 + 0.65 * u[:, 2]
    frames = np.flatnonzero(light.snow[which] > 0)
    clock = t[frames, None]
    x = np.mod(
        u[:, 0] * view.wide
        + 2.2 * np.sin(clock * 1.4 + 2 * np.pi * u[:, 3])
        - clock * 4 * near
        - camera[frames, None] * 0.6 * near,
        view.wide,
    )
    y = np.mod(u[:, 1] * HEIGHT + clock * 16 * near, HEIGHT)
    strength = np.clip((light.snow[which][frames, None] - u[:, 4]) * 6, 0, 1)
    radius = 0.75 + 0.40 * (near - 0.45) / 0.65
    tone = np.minimum(1, F32(0.42) + F32(0.62) * light.tint)[which[frames]]
    reach = int(np.ceil(1.7 * view.scale)) + 1
    px, py = x * view.scale, y * view.scale
    ix, iy = np.floor(px).astype(int), np.floor(py).astype(int)
    for dy in range(-reach + 1, reach):
        for dx in range(-reach + 1, reach):
            if np.hypot(max(abs(dx) - 0.5, 0), max(abs(dy) - 0.5, 0)) > 1.15 * view.scale + 0.5:
                continue
            distance = np.hypot(ix + dx + 0.5 - px, iy + dy + 0.5 - py) - radius * view.scale
            amount = (np.clip(0.5 - distance, 0, 1) * strength).astype(F32)
            row, column = iy + dy, ix + dx
            hit = np.nonzero((amount > 0) & (row >= 0) & (row < view.height) & (column >= 0) & (column < view.width))
            at = (frames[hit[0]], row[hit], column[hit])
            for channel in range(3):
                part = image[:, channel]
                seen = part[at]
                part[at] = seen + amount[hit] * (tone[hit[0], channel] - seen)


def paint_fog(image: np.ndarray, view: View, light: Lighting, which: np.ndarray) -> None:
    """A bank of mist around the horizon, behind the heroes."""
    y = (np.arange(view.height, dtype=F32) + F32(0.5)) / F32(view.scale)
    bank = np.exp(-(((y - F32(HORIZON)) / F32(HEIGHT * 0.24)) ** 2)) * F32(0.38)
    for i, moment in enumerate(which):
        if light.fog[moment] > 0:
            amount = (bank * light.fog[moment])[:, None]
            image[i] *= 1 - amount
            image[i] += amount * (light.low[moment] * F32(0.9) + F32(0.06))[:, None, None]
