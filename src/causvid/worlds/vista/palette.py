"""The colours of the four lights and eight paints, and what weather does to them."""

from dataclasses import dataclass

import numpy as np

from causvid.worlds.vista.canvas import F32, ink

COLOUR_INKS = {
    "red": ink(0.90, 0.12, 0.11),
    "orange": ink(1.0, 0.52, 0.06),
    "yellow": ink(1.0, 0.86, 0.14),
    "green": ink(0.13, 0.70, 0.24),
    "blue": ink(0.11, 0.36, 0.94),
    "purple": ink(0.56, 0.20, 0.82),
    "pink": ink(1.0, 0.50, 0.72),
    "white": ink(0.97, 0.97, 0.97),
}

# Rows: day, sunset, night, dawn.
_TOP = np.array([[0.20, 0.50, 0.93], [0.24, 0.17, 0.45], [0.015, 0.025, 0.10], [0.36, 0.50, 0.80]], F32)
_MIDDLE = np.array([[0.45, 0.72, 0.97], [0.80, 0.34, 0.38], [0.05, 0.08, 0.22], [0.80, 0.72, 0.82]], F32)
_LOW = np.array([[0.80, 0.92, 0.98], [1.0, 0.66, 0.28], [0.14, 0.20, 0.40], [1.0, 0.80, 0.70]], F32)
_TINT = np.array([[1.0, 1.0, 1.0], [1.0, 0.76, 0.66], [0.31, 0.38, 0.64], [0.93, 0.84, 0.90]], F32)
_HERO_TINT = np.array([[1.0, 1.0, 1.0], [1.0, 0.86, 0.78], [0.74, 0.75, 0.84], [0.97, 0.93, 0.94]], F32)
_SUN = np.array([[1, 0.97, 0.82], [1, 0.72, 0.34], [1, 0.5, 0.3], [1, 0.86, 0.68]], F32)


def weather_veil(rain: np.ndarray, snow: np.ndarray, fog: np.ndarray) -> np.ndarray:
    """How grey the sky is, 0..1."""
    return np.clip(rain * F32(0.8) + snow * F32(0.55) + fog * F32(0.45), 0, 1)


@dataclass(frozen=True)
class Lighting:
    """The colours of one moment, all [N, 3] or [N]: N distinct moments of a clip (a steady clip has one)."""

    angle: np.ndarray
    night: np.ndarray
    rain: np.ndarray
    snow: np.ndarray
    fog: np.ndarray
    clear: np.ndarray
    top: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    tint: np.ndarray
    hero_tint: np.ndarray
    sun: np.ndarray

    @property
    def daylight(self) -> np.ndarray:
        return (1 - self.night) * self.clear

    @property
    def moonlight(self) -> np.ndarray:
        return self.night * self.clear


def _blend(table: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Cyclic between the four lights, [N, 3]."""
    angle = np.mod(angle, 4)
    before = np.floor(angle).astype(int) % 4
    part = (angle - np.floor(angle)).astype(F32)
    part = (part * part * (3 - 2 * part))[:, None]
    return table[before] * (1 - part) + table[(before + 1) % 4] * part


def lighting(
    angle: np.ndarray, night: np.ndarray, rain: np.ndarray, snow: np.ndarray, fog: np.ndarray, biome: str
) -> Lighting:
    top, middle, low, tint, hero_tint, sun = (_blend(t, angle) for t in (_TOP, _MIDDLE, _LOW, _TINT, _HERO_TINT, _SUN))
    veil = weather_veil(rain, snow, fog)[:, None]
    grey = top.mean(1, keepdims=True) * F32(0.35) + low.mean(1, keepdims=True) * F32(0.45)
    top = top * (1 - veil * F32(0.75)) + veil * F32(0.75) * grey * ink(0.86, 0.94, 1.04)
    middle = middle * (1 - veil * F32(0.75)) + veil * F32(0.75) * grey * ink(0.95, 1.0, 1.05)
    low = low * (1 - veil * F32(0.65)) + veil * F32(0.65) * grey * ink(1.08, 1.09, 1.10)
    tint = tint * (1 - F32(0.20) * (rain * (1 - night))[:, None])
    hero_tint = hero_tint * (1 - F32(0.08) * rain[:, None])
    if biome == "snow":  # white ground takes the colour of the light less than anything else would
        tint = tint * F32(0.55) + F32(0.45) * tint.mean(1, keepdims=True) * ink(1.04, 0.98, 1.04)
    wet_night = (np.clip(rain + fog, 0, 1) * night)[:, None]
    return Lighting(angle, night, rain, snow, fog, 1 - veil[:, 0], top, middle * (1 + F32(0.35) * wet_night),
                    low * (1 + F32(0.45) * wet_night), tint, hero_tint, sun)  # fmt: skip
