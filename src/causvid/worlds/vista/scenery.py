"""The six landscapes: three strips each (far, middle, near), endless in x because props live in hashed cells."""

from collections.abc import Iterator

import numpy as np

from causvid.worlds.vista import props
from causvid.worlds.vista.canvas import F32, GROUND, HEIGHT, HORIZON, Patch, Strip, View, ink
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.truth import KIND

DEPTHS = (0.12, 0.40, 1.0)  # parallax of far, middle, near
FOREGROUND_DEPTH = 1.7


class Ridge:
    """A skyline: a sum of waves whose lengths never share a period."""

    def __init__(
        self,
        stream: Stream,
        base: float,
        amplitudes: tuple[float, ...],
        lengths: tuple[float, ...],
        pointed: bool = False,
    ):
        self.base, self.amplitudes, self.pointed = base, amplitudes, pointed
        self.rates = [2 * np.pi / (length * stream.uniform(0.85, 1.15)) for length in lengths]
        self.phases = [stream.uniform(0, 2 * np.pi) for _ in lengths]

    def waves(self, world: np.ndarray) -> np.ndarray:
        total = np.zeros_like(world)
        for amplitude, rate, phase in zip(self.amplitudes, self.rates, self.phases, strict=True):
            wave = np.sin(world * rate + phase)
            total = total + amplitude * (2 / np.pi * np.arcsin(wave) if self.pointed else wave)
        return total

    def top(self, world: np.ndarray) -> np.ndarray:
        return self.base + self.waves(world)

    def at(self, x: float) -> float:
        return float(self.top(np.array([x]))[0])

    def slope(self, world: np.ndarray) -> np.ndarray:
        """Rise to the right, clipped: which side the light falls on."""
        return np.clip((self.top(world - 0.5) - self.top(world + 0.5)) * 2, -1, 1)


def cells(
    stream: Stream, strip: Strip, step: float, jitter: float, slots: int = 6
) -> Iterator[tuple[float, np.ndarray]]:
    """(world x, uniform numbers) for every prop that may touch the strip: one hashed cell each `step` units."""
    first, last = int(np.floor(strip.world[0] / step)) - 2, int(np.ceil(strip.world[-1] / step)) + 2
    indices = np.arange(first, last + 1)
    draws = stream.cells(indices, slots + 1)
    for k, row in zip(indices, draws, strict=True):
        yield (k + 0.5 + jitter * (row[0] - 0.5)) * step, row[1:]


def between(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


def land(
    strip: Strip,
    top: np.ndarray,
    crest: np.ndarray,
    foot: np.ndarray,
    depth: float,
    slope: np.ndarray,
    bump: float,
    kind: int,
) -> Patch:
    """Fill below top(x): a gradient from crest to foot colour, lighter on the sunny slopes."""
    patch = strip.whole()
    below = strip.y - top[None].astype(F32)
    share = np.clip(below / F32(depth), 0, 1)
    shade = (1 + F32(bump) * slope.astype(F32))[None]
    patch.fill(-below, [(c * (1 - share) + f * share) * shade for c, f in zip(crest, foot, strict=True)], kind)
    return patch


class Landscape:
    """A biome's strips over the stretch of world that a clip shows; `spans` are (left, right) in units per layer."""

    def __init__(self, biome: str, seed: int, view: View, spans: list[tuple[float, float]]):
        self.biome, self.view = biome, view
        self.seed, self.stream = seed, Stream(seed, f"scenery {biome}")
        self.far, self.middle, self.near = (Strip(view, *span, KIND["hill"]) for span in spans)
        paint = {
            "meadow": self._meadow,
            "forest": self._forest,
            "desert": self._desert,
            "snow": self._snow,
            "sea": self._sea,
            "city": self._city,
        }
        paint[biome]()

    @property
    def strips(self) -> list[tuple[Strip, float]]:
        layers = list(zip((self.far, self.middle, self.near), DEPTHS, strict=True))
        return layers[:1] if self.biome == "sea" else layers

    def _layer(self, name: str) -> Stream:
        return Stream(self.seed, f"scenery {self.biome} {name}")

    def _ridge(
        self,
        strip: Strip,
        base: float,
        amplitudes: tuple[float, ...],
        lengths: tuple[float, ...],
        crest: np.ndarray,
        foot: np.ndarray,
        depth: float,
        bump: float,
        pointed: bool = False,
    ) -> Ridge:
        ridge = Ridge(self.stream, base, amplitudes, lengths, pointed)
        land(strip, ridge.top(strip.world), crest, foot, depth, ridge.slope(strip.world), bump, KIND["hill"])
        return ridge

    def _meadow(self) -> None:
        self._ridge(self.far, HORIZON - 7, (4.5, 2.0), (75, 31), ink(0.42, 0.62, 0.58), ink(0.55, 0.74, 0.62), 16, 0.10)
        ridge = self._ridge(
            self.middle, HORIZON + 2, (3.2, 1.2), (62, 23), ink(0.44, 0.72, 0.30), ink(0.30, 0.58, 0.24), 12, 0.12
        )
        for x, u in cells(self._layer("trees"), self.middle, 17, 0.7):
            foot = ridge.at(x) + 2.5
            if u[0] < 0.16:
                props.house(self.middle, x, foot + 0.5, 0.95, ink(0.93, 0.88, 0.78) * F32(between(u[1], 0.85, 1.05)))
            elif u[0] < 0.90:
                props.round_tree(
                    self.middle,
                    x,
                    foot,
                    between(u[1], 0.78, 1.12),
                    ink(0.22, 0.52, 0.20) * F32(between(u[2], 0.85, 1.15)),
                )
        self._ground(
            ink(0.46, 0.74, 0.28),
            ink(0.30, 0.56, 0.18),
            ink(0.80, 0.68, 0.48),
            [ink(0.98, 0.92, 0.35), ink(0.96, 0.50, 0.60), ink(1, 1, 1)],
        )

    def _forest(self) -> None:
        self._ridge(self.far, HORIZON - 8, (5.0, 2.0), (70, 27), ink(0.58, 0.50, 0.46), ink(0.74, 0.62, 0.48), 16, 0.10)
        ridge = self._ridge(
            self.middle, HORIZON + 3, (2.4, 1.0), (57, 21), ink(0.66, 0.48, 0.20), ink(0.50, 0.36, 0.16), 12, 0.10
        )
        leaves = [ink(0.90, 0.45, 0.10), ink(0.80, 0.24, 0.10), ink(0.95, 0.68, 0.16), ink(0.60, 0.52, 0.15)]
        for x, u in cells(self._layer("trees"), self.middle, 7.5, 0.66):
            colour = leaves[int(u[0] * 4)] * F32(between(u[1], 0.85, 1.05))
            props.round_tree(self.middle, x, ridge.at(x) + 2.5, between(u[2], 0.9, 1.35), colour)
        self._ground(ink(0.70, 0.50, 0.22), ink(0.46, 0.31, 0.14), ink(0.62, 0.47, 0.33), [ink(0.85, 0.42, 0.12)])

    def _desert(self) -> None:
        ridge = Ridge(self.stream, HORIZON - 8, (9.0, 2.0), (66, 24))
        flat = lambda world: ridge.base + 1.1 * np.clip(ridge.waves(world), -6, 4)  # noqa: E731  mesas: hills cut off
        slope = np.clip((flat(self.far.world - 0.5) - flat(self.far.world + 0.5)) * 2, -1, 1)
        land(
            self.far, flat(self.far.world), ink(0.80, 0.47, 0.32), ink(0.88, 0.60, 0.42), 16, slope, 0.12, KIND["hill"]
        )
        ridge = self._ridge(
            self.middle, HORIZON + 3, (3.6, 1.2), (58, 25), ink(0.95, 0.78, 0.48), ink(0.86, 0.64, 0.36), 11, 0.16
        )
        for x, u in cells(self._layer("trees"), self.middle, 26, 0.7):
            props.cactus(self.middle, x, ridge.at(x) + 2.5, between(u[0], 0.85, 1.3))
        self._ground(ink(0.94, 0.77, 0.47), ink(0.80, 0.58, 0.32), ink(0.72, 0.55, 0.38), [ink(0.62, 0.50, 0.40)])

    def _snow(self) -> None:
        far = self.far
        ridge = self._ridge(
            far,
            HORIZON - 11,
            (10.0, 4.0, 1.5),
            (52, 21, 9),
            ink(0.52, 0.58, 0.70),
            ink(0.62, 0.70, 0.82),
            20,
            0.16,
            True,
        )
        top = ridge.top(far.world)
        edge = 5.5 + 1.6 * np.sin(far.world * 1.1) + 1.2 * np.sin(far.world * 0.47 + 1) + 0.25 * (HORIZON - 11 - top)
        below = far.y - top[None].astype(F32)
        white = [c * (1 + F32(0.10) * ridge.slope(far.world).astype(F32))[None] for c in ink(0.97, 0.98, 1.0)]
        far.whole().fill(np.maximum(-below, below - edge[None].astype(F32)), white)
        ridge = self._ridge(
            self.middle, HORIZON + 3, (2.6, 1.0), (60, 22), ink(0.93, 0.96, 1.0), ink(0.78, 0.85, 0.95), 12, 0.08
        )
        for x, u in cells(self._layer("trees"), self.middle, 11, 0.9):
            if u[0] < 0.8:
                colour = ink(0.12, 0.36, 0.30) * F32(between(u[1], 0.85, 1.1))
                props.pine(self.middle, x, ridge.at(x) + 2.5, between(u[2], 0.75, 1.15), colour, 0.75)
        self._ground(ink(0.95, 0.97, 1.0), ink(0.76, 0.84, 0.95), ink(0.80, 0.84, 0.90), [ink(0.62, 0.70, 0.82)])

    def _sea(self) -> None:
        ridge = Ridge(self.stream, HORIZON + 3, (9.0, 2.5), (73, 26))
        top = HORIZON + 3.0 + np.minimum(0, ridge.waves(self.far.world) + 1.5)
        land(
            self.far,
            top,
            ink(0.36, 0.50, 0.44),
            ink(0.52, 0.62, 0.52),
            10,
            ridge.slope(self.far.world),
            0.14,
            KIND["hill"],
        )
        for x, u in cells(self._layer("palms"), self.far, 9, 0.8):
            foot = HORIZON + 3.0 + min(0.0, ridge.at(x) - ridge.base + 1.5)
            if foot < HORIZON - 2 and u[0] < 0.7:
                props.palm(self.far, x, foot + 0.6, between(u[1], 0.8, 1.1), bool(u[2] < 0.5))
        above = (self.far.y < HORIZON).astype(F32)
        self.far.alpha *= above
        self.far.rgb *= above

    def _city(self) -> None:
        for x, u in cells(self._layer("skyline"), self.far, 8, 0.37):
            colour = ink(0.56, 0.62, 0.72) * F32(between(u[0], 0.85, 1.1))
            props.tower(self.far, x, HORIZON + 8, between(u[1], 6, 10), between(u[2], 16, 34), colour, 0.35, 2.0, u[3])
        for x, u in cells(self._layer("houses"), self.middle, 14, 0.28):
            colour = (ink(0.70, 0.55, 0.48) if u[4] < 0.5 else ink(0.62, 0.62, 0.64)) * F32(between(u[0], 0.62, 1.12))
            props.tower(self.middle, x, GROUND, between(u[1], 9, 14), between(u[2], 12, 27), colour, 0.5, 2.6, u[3])
        near, patch = self.near, self.near.whole()
        share = np.clip((near.y - F32(GROUND)) / F32(HEIGHT - GROUND), 0, 1)
        flat = 0 * near.x
        patch.fill(
            F32(GROUND) - near.y + flat,
            [t * (1 - share) + b * share for t, b in zip(ink(0.46, 0.46, 0.50), ink(0.30, 0.30, 0.34), strict=True)],
            KIND["ground"],
        )
        patch.fill(np.abs(near.y - F32(GROUND + 1.2)) - F32(1.2) + flat, ink(0.66, 0.66, 0.68), KIND["ground"])
        dash = np.abs(np.mod(near.world, 14.0) - 3.5).astype(F32)[None] - F32(3.5)
        patch.fill(
            np.maximum(np.abs(near.y - F32(GROUND + 0.62 * (HEIGHT - GROUND))) - F32(0.7), dash),
            ink(0.95, 0.90, 0.70),
            KIND["ground"],
        )

    def _ground(self, top: np.ndarray, bottom: np.ndarray, path: np.ndarray, dots: list[np.ndarray]) -> None:
        """The near ground: gentle waves of brightness, a path, and flowers or stones on its verges."""
        near, patch = self.near, self.near.whole()
        depth = F32(HEIGHT - GROUND)
        share = np.clip((near.y - F32(GROUND)) / depth, 0, 1)
        tone = np.zeros_like(near.alpha)
        rows = near.y >= F32(GROUND - 2)
        first = int(np.argmax(rows[:, 0]))
        y, wave_stream = near.y[first:], self._layer("ground")
        for _ in range(3):
            phase, kx, ky = wave_stream.uniform(0, 6.28), wave_stream.uniform(0.10, 0.34), wave_stream.uniform(0.5, 1.1)
            along = np.mod(near.world * kx, 2 * np.pi).astype(F32)[None]
            tone[first:] += np.sin(along + F32(phase) + F32(1.3) * np.sin(y * F32(ky * 0.4) + F32(phase))) * np.sin(
                y * F32(ky) + F32(2 * phase)
            )
        tone = 1 + F32(0.045) * tone
        edge = F32(GROUND) - near.y + (0.6 * np.sin(near.world * 0.21)).astype(F32)[None]
        patch.fill(
            edge, [(t * (1 - share) + b * share) * tone for t, b in zip(top, bottom, strict=True)], KIND["ground"]
        )
        middle = F32(GROUND + 0.50) + F32(0.5) * depth + (0.5 * np.sin(near.world * 0.13)).astype(F32)[None]
        patch.fill(np.abs(near.y - middle) - F32(0.22) * depth, path, KIND["ground"], alpha=0.85)
        for x, u in cells(self._layer("dots"), near, 9, 0.9):
            y0 = GROUND + (0.08 if u[0] < 0.5 else 0.95) * float(depth) + between(u[1], -0.6, 0.6)
            props.dot(near, x, y0, dots[int(u[2] * len(dots))])
