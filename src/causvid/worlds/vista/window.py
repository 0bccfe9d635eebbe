"""A small window that follows a moving thing: its parts are drawn for all frames at once, then laid down."""

from collections.abc import Callable, Iterator

import numpy as np

from causvid.worlds.vista.canvas import F32, View, cover, limb_distance, triangle_distance

Light = tuple[
    float, float, float, float
]  # brightness at the lower and the upper end of a height range: low, high, y0, y1


class Window:
    """Coordinates u, v are in the thing's own units, u forwards and v downwards; `facing` in [-1, 1] turns it round."""

    def __init__(
        self,
        view: View,
        x: np.ndarray,
        y: np.ndarray,
        radius: float,
        size: float = 1.0,
        turn: np.ndarray | None = None,
        facing: np.ndarray | None = None,
    ):
        self.scale: np.floating = F32(size * view.scale)
        self.view = view
        half = int(np.ceil(radius * self.scale)) + 1
        self.half, self.count = half, len(x)
        px, py = x * view.scale, y * view.scale
        self.left, self.top = np.floor(px).astype(int) - half, np.floor(py).astype(int) - half
        k = np.arange(2 * half, dtype=F32) + F32(0.5)
        self.u: np.ndarray = ((k + (self.left - px)[:, None].astype(F32)) / self.scale)[:, None, :]
        self.v: np.ndarray = ((k + (self.top - py)[:, None].astype(F32)) / self.scale)[:, :, None]
        self.turned = False
        if turn is not None and np.any(np.abs(turn) > 1e-4):
            self.turned = True
            cos, sin = np.cos(turn).astype(F32)[:, None, None], np.sin(turn).astype(F32)[:, None, None]
            u, v = self.u, self.v
            self.u, self.v = cos * u + sin * v, cos * v - sin * u
        self.mirror = 1
        if facing is not None:
            self.u = self.u / facing[:, None, None].astype(F32)
            self.mirror = 0 if facing.min() < 0 < facing.max() else int(np.sign(facing[0]))
        self.rgb = np.zeros((self.count, 3, 2 * half, 2 * half), F32)
        self.alpha = np.zeros((self.count, 2 * half, 2 * half), F32)
        self.glow: np.ndarray | None = None

    def _span(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """Rows and columns that can hold a part with these bounds; everything once the thing rotates."""
        if self.turned:
            return slice(None), slice(None)
        if self.mirror <= 0:
            x0, x1 = (-x1, -x0) if self.mirror else (min(x0, -x1), max(x1, -x0))
        low = lambda value: max(0, int(np.floor(value * self.scale)) + self.half - 2)  # noqa: E731
        high = lambda value: max(1, int(np.ceil(value * self.scale)) + self.half + 2)  # noqa: E731
        return slice(low(y0), high(y1)), slice(low(x0), high(x1))

    def shape(
        self,
        distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
        bounds: tuple[float, float, float, float],
        colour: np.ndarray,
        light: Light | None = None,
        alpha: np.ndarray | float = 1.0,
        shade: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Paint where distance(u, v) < 0. `colour` is [3], or [F, 3] while it changes; bounds are x0, x1, y0, y1."""
        rows, cols = self._span(*bounds)
        u, v = (
            self.u[:, rows if self.turned else slice(None), cols],
            self.v[:, rows, cols if self.turned else slice(None)],
        )
        amount = cover(distance(u, v) * self.scale)
        if not (isinstance(alpha, float) and alpha == 1.0):
            amount = amount * (np.asarray(alpha, F32).reshape(-1, 1, 1))
        keep = 1 - amount
        tone = None
        if light is not None:
            low, high, y0, y1 = light
            tone = F32(low) + F32(high - low) * np.clip((F32(y1) - v) / F32(y1 - y0), 0, 1)
        elif shade is not None:
            tone = shade(u, v)
        lit = amount if tone is None else amount * tone
        for channel in range(3):
            part = self.rgb[:, channel, rows, cols]
            part *= keep
            part += lit * (colour[:, channel, None, None] if colour.ndim == 2 else colour[channel])
        part = self.alpha[:, rows, cols]
        part *= keep
        part += amount
        if self.glow is not None:
            self.glow[:, :, rows, cols] *= keep[:, None]

    def box(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: np.ndarray,
        rounded: float = 0.0,
        light: Light | None = None,
        alpha: np.ndarray | float = 1.0,
    ) -> None:
        self.shape(
            lambda u, v: box_distance(u - F32(x), v - F32(y), rx, ry, rounded),
            (x - rx, x + rx, y - ry, y + ry),
            colour,
            light,
            alpha,
        )

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: np.ndarray,
        light: Light | None = None,
        alpha: np.ndarray | float = 1.0,
    ) -> None:
        self.shape(
            lambda u, v: ellipse_distance(u - F32(x), v - F32(y), rx, ry),
            (x - rx, x + rx, y - ry, y + ry),
            colour,
            light,
            alpha,
        )

    def disc(self, x: float, y: float, radius: float, colour: np.ndarray, light: Light | None = None) -> None:
        self.ellipse(x, y, radius, radius, colour, light)

    def limb(self, ax: float, ay: float, bx: float, by: float, radius: float, colour: np.ndarray) -> None:
        bounds = (min(ax, bx) - radius, max(ax, bx) + radius, min(ay, by) - radius, max(ay, by) + radius)
        self.shape(lambda u, v: limb_distance(u, v, ax, ay, bx, by, radius), bounds, colour)

    def polygon(self, corners: list[tuple[float, float]], colour: np.ndarray, light: Light | None = None) -> None:
        """A convex polygon, clockwise as seen on the screen."""
        xs, ys = zip(*corners, strict=True)
        self.shape(lambda u, v: triangle_distance(u, v, *corners), (min(xs), max(xs), min(ys), max(ys)), colour, light)

    def lamp(self, x: float, y: float, radius: float, colour: np.ndarray, strength: np.ndarray) -> None:
        """A soft light of `strength` [F]."""
        self.shine(
            lambda u, v: np.clip(1 - np.hypot(u - F32(x), v - F32(y)) / F32(radius), 0, 1) ** 2,
            (x - radius, x + radius, y - radius, y + radius),
            colour,
            strength,
        )

    def shine(
        self,
        amount: Callable[[np.ndarray, np.ndarray], np.ndarray],
        bounds: tuple[float, float, float, float],
        colour: np.ndarray,
        strength: np.ndarray,
    ) -> None:
        """Add light `amount(u, v)` on top of whatever lies behind."""
        if not np.any(strength > 0):
            return
        if self.glow is None:
            self.glow = np.zeros_like(self.rgb)
        rows, cols = self._span(*bounds)
        u, v = (
            self.u[:, rows if self.turned else slice(None), cols],
            self.v[:, rows, cols if self.turned else slice(None)],
        )
        light = amount(u, v) * strength.astype(F32)[:, None, None]
        for channel in range(3):
            self.glow[:, channel, rows, cols] += light * colour[channel]

    def places(self) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """(frame, rows and columns of the picture, rows and columns of the window) wherever the two overlap."""
        size = 2 * self.half
        for i in range(self.count):
            top, left = int(self.top[i]), int(self.left[i])
            y0, x0 = max(0, -top), max(0, -left)
            y1, x1 = min(size, self.view.height - top), min(size, self.view.width - left)
            if y1 > y0 and x1 > x0:
                yield i, (slice(top + y0, top + y1), slice(left + x0, left + x1)), (slice(y0, y1), slice(x0, x1))

    def lay_on(self, image: np.ndarray) -> None:
        keep = 1 - self.alpha
        for i, there, here in self.places():
            part = image[i][:, there[0], there[1]]
            part *= keep[i][here]
            part += self.rgb[i][:, here[0], here[1]]
            if self.glow is not None:
                part += self.glow[i][:, here[0], here[1]]


def box_distance(u: np.ndarray, v: np.ndarray, rx: float, ry: float, rounded: float = 0.0) -> np.ndarray:
    across, down = np.abs(u) - F32(rx - rounded), np.abs(v) - F32(ry - rounded)
    inside = np.maximum(across, down)
    if not rounded:
        return inside
    corner = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(down, 0) ** 2)
    return corner + np.minimum(inside, 0) - F32(rounded)


def ellipse_distance(u: np.ndarray, v: np.ndarray, rx: float, ry: float) -> np.ndarray:
    return (np.sqrt((u * F32(1 / rx)) ** 2 + (v * F32(1 / ry)) ** 2) - 1) * F32(min(rx, ry))
