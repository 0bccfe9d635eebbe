"""Drawing with distances: static strips of scenery, and small windows around moving things.

Lengths are in units: a picture is 64 units high at every size, so a scene looks the same at 64 and at 256 pixels.
Colours are premultiplied by coverage everywhere; arrays are channel first (channel last was four times slower).
"""

from collections.abc import Sequence

import numpy as np

F32 = np.float32
Colour = np.ndarray | Sequence[np.ndarray]  # red, green, blue: numbers or [h, w] each
HEIGHT = 64.0
HORIZON = 38.4
GROUND = 47.4  # where the near ground begins
PATH = 54.0  # where ground heroes stand


def ink(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], F32)


def smooth(low: float, high: float, x: np.ndarray) -> np.ndarray:
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def cover(distance: np.ndarray) -> np.ndarray:
    """Coverage of a pixel whose centre is `distance` pixels outside an edge."""
    return np.clip(F32(0.5) - distance, 0, 1)


class View:
    """The size of the picture: pixels and units."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.scale = height / HEIGHT
        self.wide = width / self.scale  # units


class Strip:
    """A static layer over a stretch of the endless world, two samples per pixel so that it scrolls without shimmer."""

    def __init__(self, view: View, left: float, right: float, kind: int):
        self.view, self.default_kind = view, kind
        self.first = int(np.floor(left * view.scale)) - 2
        count = int(np.ceil(right * view.scale)) + 3 - self.first
        self.world = ((np.arange(2 * count) + 0.5) / 2 + self.first) / view.scale  # float64: worlds are long
        self.x = (self.world - self.world[0]).astype(F32)[None]
        self.y = ((np.arange(view.height, dtype=F32) + F32(0.5)) / F32(view.scale))[:, None]
        self.rgb = np.zeros((3, view.height, 2 * count), F32)
        self.alpha = np.zeros((view.height, 2 * count), F32)
        self.glow: np.ndarray | None = None
        self.kind = np.zeros((view.height, 2 * count), np.uint8)

    def patch(self, x: float, y: float, left: float, right: float, up: float, down: float) -> "Patch | None":
        """A rectangle around world point (x, y), or None if it lies outside the strip."""
        s = self.view.scale
        px, py = x * s - self.first, y * s
        x0, x1 = (
            int(max(0, np.floor(px - left * s - 1))),
            int(min(self.alpha.shape[1] // 2, np.ceil(px + right * s + 1))),
        )
        y0, y1 = int(max(0, np.floor(py - up * s - 1))), int(min(self.view.height, np.ceil(py + down * s + 1)))
        if x1 <= x0 or y1 <= y0:
            return None
        return Patch(self, slice(y0, y1), slice(2 * x0, 2 * x1), F32(x - self.world[0]), F32(y))

    def whole(self) -> "Patch":
        return Patch(self, slice(None), slice(None), F32(0), F32(0))


class Patch:
    """Part of a strip with its own origin: u to the right, v downwards, in units."""

    def __init__(self, strip: Strip, rows: slice, cols: slice, x: np.floating, y: np.floating):
        self.strip, self.rows, self.cols = strip, rows, cols
        self.u, self.v = strip.x[:, cols] - x, strip.y[rows] - y

    def fill(self, distance: np.ndarray, colour: Colour, kind: int | None = None, alpha: float = 1.0) -> None:
        """Lay `colour` ([3] or [3, h, w]) over everything within `distance` < 0."""
        self.lay(cover(distance * F32(self.strip.view.scale)) * F32(alpha), colour, kind)

    def lay(self, amount: np.ndarray, colour: Colour, kind: int | None = None) -> None:
        strip, at = self.strip, (self.rows, self.cols)
        keep = 1 - amount
        for channel in range(3):
            part = strip.rgb[channel][at]
            part *= keep
            part += amount * colour[channel]
        part = strip.alpha[at]
        part *= keep
        part += amount
        np.copyto(strip.kind[at], strip.default_kind if kind is None else kind, where=amount > 0.5)
        if strip.glow is not None:
            strip.glow[:, self.rows, self.cols] *= keep

    def shine(self, distance: np.ndarray, colour: np.ndarray) -> None:
        """Add light that is only seen at night."""
        strip = self.strip
        if strip.glow is None:
            strip.glow = np.zeros_like(strip.rgb)
        strip.glow[:, self.rows, self.cols] += cover(distance * F32(strip.view.scale)) * colour[:, None, None]


def limb_distance(
    u: np.ndarray, v: np.ndarray, ax: float, ay: float, bx: float, by: float, radius: float
) -> np.ndarray:
    """Distance to a rounded stick from (ax, ay) to (bx, by)."""
    pu, pv, du, dv = u - F32(ax), v - F32(ay), F32(bx - ax), F32(by - ay)
    along = np.clip((pu * du + pv * dv) / F32(du * du + dv * dv + 1e-6), 0, 1)
    return np.sqrt((pu - du * along) ** 2 + (pv - dv * along) ** 2) - F32(radius)


def triangle_distance(u: np.ndarray, v: np.ndarray, *corners: tuple[float, float]) -> np.ndarray:
    """Distance to a triangle (or convex polygon) given clockwise as seen on the screen."""
    distance: np.ndarray = np.array(-np.inf, F32)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(bx - ax, by - ay) + 1e-6
        edge = (u - F32(ax)) * F32((by - ay) / length) - (v - F32(ay)) * F32((bx - ax) / length)
        distance = np.maximum(distance, edge)
    return distance
