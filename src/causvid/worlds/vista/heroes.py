"""The eleven heroes. Each drawing gets a window, its body colour, a phase (wheels, wings, lamps) and how dark it is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from causvid.worlds.vista.canvas import F32, ink
from causvid.worlds.vista.window import Window, box_distance, ellipse_distance

GLASS, TYRE, RIM, CREAM, IRON = (
    ink(0.64, 0.84, 0.96),
    ink(0.10, 0.10, 0.12),
    ink(0.78, 0.78, 0.80),
    ink(0.97, 0.95, 0.90),
    ink(0.20, 0.20, 0.24),
)
BLACK, BEAK, LAMP, WARM = ink(0.05, 0.05, 0.06), ink(1.0, 0.62, 0.10), ink(1.0, 0.90, 0.55), ink(1.0, 0.85, 0.50)


def _per_frame(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, F32).reshape(-1, 1, 1)


def _wheel(w: Window, x: float, y: float, radius: float, phase: np.ndarray) -> None:
    cos, sin = _per_frame(np.cos(phase)), _per_frame(np.sin(phase))
    w.disc(x, y, radius, TYRE)
    w.disc(x, y, radius * 0.55, RIM)

    def spoke(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        bar = np.abs(cos * (u - F32(x)) + sin * (v - F32(y))) - F32(0.45)
        return np.maximum(bar, ellipse_distance(u - F32(x), v - F32(y), radius * 0.8, radius * 0.8))

    w.shape(spoke, (x - radius, x + radius, y - radius, y + radius), ink(0.30, 0.30, 0.33))


def _lit_window(w: Window, x: float, y: float, rx: float, ry: float, rounded: float, light: np.ndarray) -> None:
    w.box(x, y, rx, ry, GLASS, rounded)
    w.shine(
        lambda u, v: np.clip(0.5 - box_distance(u - F32(x), v - F32(y), rx, ry) * w.scale, 0, 1),
        (x - rx, x + rx, y - ry, y + ry),
        WARM,
        light,
    )


def draw_car(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.box(0, -4.6, 4.8, 3.1, body * F32(0.92), 2.2, (0.85, 1.2, -8, 0))
    w.box(-2.1, -5.0, 1.8, 1.7, GLASS, 0.8)
    w.box(2.1, -5.0, 1.8, 1.7, GLASS, 0.8)
    w.box(0, -0.9, 9.2, 2.7, body, 1.6, (0.72, 1.22, -3.5, 2))
    for x in (-5.2, 5.2):
        _wheel(w, x, 1.9, 2.5, phase)
    w.box(8.6, -1.2, 0.7, 0.8, ink(1, 0.97, 0.75), 0.3)
    w.box(-8.7, -1.2, 0.6, 0.8, ink(0.75, 0.08, 0.08), 0.3)
    w.lamp(9.2, -1.2, 3.6, LAMP, night)


def draw_bus(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.box(0, -3.6, 10.5, 5.6, body, 1.6, (0.74, 1.18, -9, 2))
    for x in (-7.6, -3.8, 0.0, 3.8, 7.8):
        _lit_window(w, x, -5.4, 1.5, 1.8, 0.5, night * 0.8)
    w.box(0, -1.4, 10.4, 0.65, CREAM)
    for x in (-6.2, 6.2):
        _wheel(w, x, 2.1, 2.3, phase)
    w.lamp(10.6, -0.2, 3.4, LAMP, night)


def draw_train(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.box(-6, -3.6, 4.4, 5.2, body, 0.8, (0.76, 1.15, -9, 2))
    w.box(-6, -8.9, 5.4, 0.9, IRON, 0.5)
    _lit_window(w, -6, -5.6, 2.2, 1.9, 0.4, night)
    w.box(4.2, -2.4, 6.4, 3.6, body, 2.2, (0.70, 1.25, -6, 2))
    w.box(8.0, -7.4, 1.2, 2.4, IRON, 0.3)
    w.disc(3.2, -6.2, 1.3, ink(0.90, 0.74, 0.25))
    w.box(0.5, 1.4, 11, 0.8, IRON, 0.4)
    for x in (-7.0, -2.0, 3.4, 8.2):
        w.disc(x, 2.4, 1.9, ink(0.16, 0.16, 0.19))
        w.disc(x, 2.4, 0.8, ink(0.85, 0.35, 0.25))
    w.lamp(11, -2, 3.4, LAMP, night)
    _puffs(w, phase)


def _puffs(w: Window, phase: np.ndarray) -> None:
    """Smoke that rises and drifts back; four puffs are always on their way."""
    for k in range(4):
        age = np.mod(phase * 0.08 + k / 4, 1)
        x, y, radius = _per_frame(8 - 13 * age), _per_frame(-10.5 - 5 * np.sqrt(age)), _per_frame(1.4 + 2.6 * age)
        w.shape(
            partial(_round, x, y, radius),
            (-9, 11, -20, -8),
            ink(0.93, 0.93, 0.95),
            None,
            0.75 * (1 - age) * _fresh(age),
        )


def _round(x: np.ndarray, y: np.ndarray, radius: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u - x, v - y) - radius


def _fresh(age: np.ndarray) -> np.ndarray:
    """No puff pops up from nothing."""
    return np.clip(age * 12, 0, 1)


def draw_ball(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    radius = 6.2
    cos, sin = _per_frame(np.cos(phase)), _per_frame(np.sin(phase))

    def shade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        depth = np.sqrt(np.clip(1 - (u * u + v * v) / F32(radius**2), 0, 1))
        return F32(0.55) + F32(0.60) * np.clip(F32(0.62) * (depth - v / F32(radius)), 0, 1)

    disc = lambda u, v: np.sqrt(u * u + v * v) - F32(radius)  # noqa: E731
    bounds = (-radius, radius, -radius, radius)
    w.shape(disc, bounds, body, shade=shade)
    w.shape(lambda u, v: np.maximum(np.abs(cos * v - sin * u) - F32(1.25), disc(u, v)), bounds, CREAM, shade=shade)
    w.disc(0, 0, 2.0, CREAM)
    w.ellipse(-2.0, -2.9, 0.9, 0.9, ink(1, 1, 1), alpha=0.75)


def draw_rabbit(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.disc(-4.9, 0.6, 1.8, np.clip(body * F32(1.25) + F32(0.12), 0, 1))
    w.ellipse(-0.6, 0.4, 5.0, 3.7, body, (0.78, 1.16, -4, 4))
    w.ellipse(-2.8, 2.7, 2.6, 1.5, body * F32(0.84))
    w.ellipse(2.6, 3.2, 1.5, 1.0, body * F32(0.84))
    w.limb(3.4, -4.0, 2.0, -9.2, 1.15, body * F32(0.9))
    w.limb(4.6, -4.0, 4.8, -9.6, 1.2, body)
    w.limb(4.65, -5.0, 4.8, -8.9, 0.55, ink(1, 0.72, 0.76))
    w.ellipse(4.4, -2.6, 3.1, 2.8, body, (0.85, 1.15, -6, 1))
    w.disc(5.4, -3.2, 0.8, BLACK)
    w.disc(7.2, -2.1, 0.6, ink(0.95, 0.45, 0.50))


def draw_bird(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    """Round body, orange beak, tall flapping wings: nothing a plane has."""
    flap = np.sin(phase)
    _wing(w, body * F32(0.58), flap, 0.6)
    w.polygon([(-8.4, -2.2), (-3.2, -1.4), (-3.4, 1.4), (-7.8, 1.6)], body * F32(0.78))
    w.ellipse(0, 0.2, 4.9, 3.1, body, (0.76, 1.18, -3, 3))
    w.ellipse(0.6, 1.5, 3.2, 1.4, np.clip(body * F32(0.35) + F32(0.62), 0, 1))
    w.disc(4.2, -2.0, 2.6, body, (0.85, 1.15, -5, 1))
    w.polygon([(6.2, -3.0), (9.6, -1.5), (6.2, -0.6)], BEAK)
    w.disc(4.9, -2.6, 0.7, BLACK)
    _wing(w, body * F32(0.74), flap, -1.4)


def _wing(w: Window, colour: np.ndarray, flap: np.ndarray, x: float) -> None:
    """A leaf from the shoulder to a tip that swings between 7.4 above and 5 below."""
    tip = _per_frame(-1.2 - 6.2 * flap)
    lean = _per_frame(-2.4 * np.abs(flap) - 0.8)

    def leaf(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        along = np.clip((v + F32(0.4)) / (tip + np.copysign(F32(0.6), tip)), -0.2, 1.25)
        width = F32(3.0) * (1 - np.clip(along, 0, 1) ** 2) + F32(0.25)
        return np.maximum(np.abs(u - F32(x) - lean * along) - width, F32(4.0) * (np.abs(along - F32(0.5)) - F32(0.55)))

    w.shape(leaf, (x - 6.5, x + 3.5, -8.6, 6.2), colour)


def draw_balloon(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    for side in (-1, 1):
        w.limb(side * 2.2, 7.2, side * 1.4, 11.0, 0.3, ink(0.35, 0.28, 0.20))

    def envelope(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        neck = np.abs(u) - (F32(7.1) - np.clip((v - F32(1.2)) / F32(6.6), 0, 1) * F32(4.7))
        return np.minimum(
            np.sqrt(u * u + (v + F32(2.2)) ** 2) - F32(8.0), np.maximum(neck, np.maximum(v - F32(7.6), F32(1.0) - v))
        )

    def shade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return F32(0.70) + F32(0.70) * np.clip(F32(0.75) - np.hypot(u - F32(2.2), v + F32(4.4)) / F32(11.5), 0, 1)

    def stripe(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        width = F32(2.0) * np.sqrt(np.clip(1 - ((v + F32(1.5)) / F32(9.5)) ** 2, 0, 1))
        return np.maximum(np.abs(u) - width, envelope(u, v))

    bounds = (-8.2, 8.2, -10.4, 7.8)
    w.shape(envelope, bounds, body, shade=shade)
    w.shape(stripe, bounds, ink(0.98, 0.95, 0.88), shade=shade)
    w.box(0, 12.2, 2.1, 1.8, ink(0.55, 0.36, 0.18), 0.4, (0.8, 1.15, 10, 14))
    w.shine(
        lambda u, v: (
            np.clip(0.5 - envelope(u, v) * w.scale, 0, 1) * np.clip(1 - np.hypot(u, v - F32(4)) / F32(10), 0, 1)
        ),
        bounds,
        ink(1, 0.62, 0.25),
        night * (0.42 + 0.10 * np.sin(phase * 0.5)),
    )


def draw_plane(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    """Long straight fuselage, tall tail fin, swept wing, spinning propeller."""
    w.polygon([(-10.0, -6.6), (-7.4, -6.6), (-4.2, -1.2), (-8.2, -0.8)], body * F32(0.85))
    w.polygon([(-2.0, -1.4), (2.2, -1.2), (-1.2, -4.4), (-3.4, -4.4)][::-1], body * F32(0.66))
    w.ellipse(0, 0, 9.6, 2.7, ink(0.95, 0.95, 0.97), (0.78, 1.05, -2.6, 2.6))
    w.shape(
        lambda u, v: np.maximum(ellipse_distance(u, v, 9.6, 2.7), F32(0.0) - v),
        (-9.6, 9.6, -0.5, 2.8),
        body,
        (0.82, 1.15, -1, 3),
    )
    for x in (-3.6, -1.2, 1.2, 3.6):
        w.disc(x, -1.0, 0.65, ink(0.25, 0.35, 0.50))
    w.ellipse(6.4, -1.4, 1.8, 1.0, ink(0.45, 0.65, 0.85))
    w.polygon([(3.4, 0.6), (-1.4, 0.6), (-6.0, 5.4), (-3.2, 5.4)][::-1], body * F32(0.72))
    w.ellipse(9.9, 0, 0.6, 3.6, ink(0.25, 0.25, 0.28), alpha=0.35 + 0.35 * np.abs(np.sin(phase * 2.3)))
    w.lamp(-9.4, -6.2, 2.8, ink(1, 0.2, 0.15), night * np.clip(3 * np.sin(phase * 0.7), 0, 1))


def draw_ufo(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.ellipse(0, -2.4, 4.4, 4.4, ink(0.70, 0.90, 0.95), (0.7, 1.2, -7, 0))
    w.ellipse(0, 0, 10.0, 3.1, body, (0.66, 1.25, -3, 3))
    w.ellipse(0, 2.4, 4.2, 1.0, body * F32(0.6))
    for k, x in enumerate((-6.6, -2.3, 2.3, 6.6)):
        beat = 0.5 + 0.5 * np.clip(
            2 * np.sin(phase * 0.5 - k * np.pi / 2), -1, 1
        )  # a light that runs round in four steps
        w.ellipse(x, 0.9, 1.0, 1.0, ink(1, 0.95, 0.6), alpha=0.45 + 0.55 * beat)
        w.lamp(x, 0.9, 2.0, LAMP, beat * (0.35 + 0.55 * night))


def draw_boat(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.limb(-0.4, 2.0, -0.4, -13.2, 0.5, ink(0.40, 0.28, 0.18))
    w.shape(
        _main_sail,
        (0, 8, -13, 1),
        body,
        shade=lambda u, v: F32(0.82) + F32(0.30) * np.clip(u / F32(7), 0, 1) + 0 * v,
    )
    w.polygon([(-1.0, -10.6), (-1.0, 0.2), (-6.2, 0.2)], CREAM)

    def hull(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        side = np.abs(u) - (F32(8.8) - np.clip((v - F32(1.4)) / F32(3.6), 0, 1) * F32(2.6))
        return np.maximum(side, np.maximum(F32(1.4) - v, v - F32(4.8)))

    w.shape(hull, (-9, 9, 1, 5), ink(0.46, 0.28, 0.16), (0.75, 1.2, 1, 5))
    w.shape(lambda u, v: np.maximum(hull(u, v), v - F32(2.4)), (-9, 9, 1, 3), ink(0.93, 0.88, 0.78))
    w.lamp(-0.4, -12.8, 3.0, LAMP, night)


def _main_sail(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The main sail: right-angled at the foot of the mast."""
    slope = F32(1 / np.hypot(7.6, 12.8))
    hypotenuse = ((u - F32(0.4)) * F32(12.8) - (v + F32(12.6)) * F32(7.6)) * slope
    return np.maximum(np.maximum(F32(0.4) - u, v - F32(0.2)), hypotenuse)


def draw_duck(w: Window, body: np.ndarray, phase: np.ndarray, night: np.ndarray) -> None:
    w.polygon([(-8.2, -3.4), (-3.6, -1.0), (-5.0, 2.2)], body * F32(0.9))
    w.ellipse(-0.4, 0.8, 5.6, 3.4, body, (0.75, 1.15, -3, 4))
    w.ellipse(-1.4, 0.4, 3.1, 1.8, body * F32(0.76))
    w.ellipse(3.5, -2.2, 1.6, 2.7, body * F32(0.97))
    w.disc(4.0, -4.6, 2.7, body, (0.85, 1.15, -7, -2))
    w.ellipse(7.2, -4.0, 1.9, 0.9, BEAK)
    w.disc(4.8, -5.2, 0.75, BLACK)


@dataclass(frozen=True)
class Figure:
    """A hero's drawing and measures in its own units; `size` brings every hero to a third of the picture or more."""

    draw: Callable[[Window, np.ndarray, np.ndarray, np.ndarray], None]
    size: float
    up: float
    down: float  # to the soles, the wheels' foot, the keel
    side: float
    wheel: float = 0.0  # radius, for everything that rolls
    beat: float = 0.0  # phase per second, for everything that does not
    reach: float = 0.0  # the window's half size where smoke or light goes beyond the body

    @property
    def radius(self) -> float:
        return self.reach or float(max(self.up, self.down, self.side)) + 0.5


FIGURES = {
    "car": Figure(draw_car, 1.62, 7.7, 4.4, 9.5, wheel=2.5, reach=13),
    "bus": Figure(draw_bus, 1.52, 9.2, 4.4, 10.6, wheel=2.3, reach=14),
    "train": Figure(draw_train, 1.45, 10.0, 4.3, 11.5, beat=3.6, reach=19),
    "ball": Figure(draw_ball, 1.72, 6.2, 6.2, 6.2, wheel=6.2),
    "rabbit": Figure(draw_rabbit, 1.62, 10.8, 4.2, 8.0),
    "bird": Figure(draw_bird, 1.62, 8.6, 6.2, 9.8, beat=8.0),
    "balloon": Figure(draw_balloon, 1.32, 10.3, 14.0, 8.1, beat=4.0),
    "plane": Figure(draw_plane, 1.55, 6.7, 5.6, 10.6, beat=9.0, reach=12.5),
    "ufo": Figure(draw_ufo, 1.60, 6.9, 3.6, 10.1, beat=6.0),
    "boat": Figure(draw_boat, 1.40, 13.7, 4.8, 8.8, reach=16),
    "duck": Figure(draw_duck, 1.80, 7.4, 4.2, 9.2),
}
