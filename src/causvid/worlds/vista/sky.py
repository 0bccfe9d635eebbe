"""Gradient, stars, sun, moon and clouds."""

import numpy as np

from causvid.worlds.vista.canvas import F32, HEIGHT, HORIZON, Strip, View, ink
from causvid.worlds.vista.layers import Moments, scroll
from causvid.worlds.vista.palette import Lighting
from causvid.worlds.vista.scenery import between, cells
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.truth import KIND, Labels
from causvid.worlds.vista.window import Window

SKY = HORIZON + 6  # units from the top down to where the gradient ends
DRIFT = 2.2  # clouds, units a second
CLOUD_DEPTH = 0.06


class Sky:
    def __init__(self, seed: int, view: View):
        stream = Stream(seed, "sky")
        self.view, self.seed = view, seed
        self.sun_left = stream.chance(0.5)
        share = stream.uniform(0.68, 0.78)
        self.sun_x = view.wide * (1 - share if self.sun_left else share)
        self.moon_x = view.wide - self.sun_x
        self.drift = stream.uniform(0, 1000)
        self.rows = int(np.ceil(SKY * view.scale))

    def sun_y(self, angle: np.ndarray) -> np.ndarray:
        angle = np.mod(angle, 4)
        return np.interp(np.minimum(angle, np.abs(angle - 4)), [0, 1, 1.6], [0.17 * HEIGHT, HORIZON - 5, HORIZON + 14])

    def moon_y(self, angle: np.ndarray) -> np.ndarray:
        return np.interp(np.abs(np.mod(angle, 4) - 2), [0, 0.55, 1], [0.20 * HEIGHT, 0.45 * HEIGHT, HORIZON + 14])

    def paint(
        self,
        image: np.ndarray,
        t: np.ndarray,
        camera: np.ndarray,
        light: Lighting,
        moments: Moments,
        labels: Labels | None,
    ) -> None:
        base = self._still(light)
        for i, moment in enumerate(moments.which):
            image[i][:, : self.rows] = base[moment]
            image[i][:, self.rows :] = light.low[moment][:, None, None]
        if labels is not None:
            self._label_discs(light, moments, labels)
        self._stars(image, t, light, moments)
        self._clouds(image, t, camera, light, moments, labels)

    def _still(self, light: Lighting) -> np.ndarray:
        """Gradient, glow, sun and moon of each moment, [N, 3, rows, W]."""
        view = self.view
        y = np.clip(np.arange(self.rows, dtype=F32) / F32(SKY * view.scale), 0, 1)[None, None]
        upper, lower = np.clip(2 * y, 0, 1), np.clip(2 * y - 1, 0, 1)
        column = (light.top[:, :, None] * (1 - upper) + light.middle[:, :, None] * upper) * (1 - lower) + light.low[
            :, :, None
        ] * lower
        base = np.repeat(column[..., None], view.width, 3)
        px, py = (
            (np.arange(view.width, dtype=F32) + F32(0.5)) / F32(view.scale),
            (np.arange(self.rows, dtype=F32) + F32(0.5)) / F32(view.scale),
        )
        sun_y = self.sun_y(light.angle).astype(F32)
        across = np.exp(-((px - F32(self.sun_x)) ** 2) / 340)
        down = np.exp(-((py[None] - sun_y[:, None]) ** 2) / 340) * light.daylight[:, None]
        colour = F32(0.42) * light.sun * ink(1, 0.86, 0.6)
        for n in range(len(base)):
            if light.daylight[n] > 0.01:
                base[n] += (colour[n][:, None] * down[n])[:, :, None] * across
        for window in self._discs(light):
            window.lay_on(base)
        return base

    def _discs(self, light: Lighting) -> list[Window]:
        """The sun in daylight and the crescent moon at night, one frame per moment."""
        count = len(light.angle)
        sky = View(self.rows, self.view.width)
        sky.scale = self.view.scale
        sun = Window(sky, np.full(count, self.sun_x), self.sun_y(light.angle), 6)
        sun.shape(lambda u, v: np.hypot(u, v) - F32(4.6), (-5, 5, -5, 5), light.sun, alpha=light.daylight)
        moon = Window(sky, np.full(count, self.moon_x), self.moon_y(light.angle), 6)
        crescent = lambda u, v: np.maximum(np.hypot(u, v) - F32(4.4), F32(4.0) - np.hypot(u - F32(2.2), v + F32(1.2)))  # noqa: E731
        moon.shape(crescent, (-5, 5, -5, 5), ink(0.97, 0.96, 0.86), alpha=light.moonlight)
        return [sun, moon]

    def _label_discs(self, light: Lighting, moments: Moments, labels: Labels) -> None:
        for window, kind in zip(self._discs(light), (KIND["sun"], KIND["moon"]), strict=True):
            for moment, there, here in window.places():
                for frame in moments.groups[moment]:
                    labels.stamp(int(frame), *there, window.alpha[moment][here] > 0.4, kind)

    def _stars(self, image: np.ndarray, t: np.ndarray, light: Lighting, moments: Moments) -> None:
        shining = light.moonlight[moments.which]
        frames = np.flatnonzero(shining > 0)
        if not len(frames):
            return
        view = self.view
        count = int(0.0085 * SKY * view.wide)
        u = Stream(self.seed, "stars").cells(np.arange(count), 4)
        x, y = (u[:, 0] * view.width).astype(int), (u[:, 1] ** 1.3 * SKY * 0.9 * view.scale).astype(int)
        glint = (
            (0.75 + 0.25 * np.sin(t[frames, None] * 3 + 2 * np.pi * u[:, 3]))
            * (0.25 + 0.75 * u[:, 2])
            * shining[frames, None]
        )
        big = max(1, round(view.scale))
        for dy in range(big):
            for dx in range(big):
                for channel, tone in enumerate((0.95, 0.97, 1.0)):
                    at = (
                        frames[:, None],
                        channel,
                        np.minimum(y + dy, view.height - 1),
                        np.minimum(x + dx, view.width - 1),
                    )
                    image[at] += (glint * tone).astype(F32)

    def _clouds(
        self,
        image: np.ndarray,
        t: np.ndarray,
        camera: np.ndarray,
        light: Lighting,
        moments: Moments,
        labels: Labels | None,
    ) -> None:
        """Fair-weather clouds stay whatever the weather; more of them fade in under a grey sky."""
        left = self.drift + DRIFT * t + CLOUD_DEPTH * camera
        day = 1 - light.night
        paint = np.clip(light.low * F32(0.55) + F32(0.5) * light.tint + F32(0.12) * day[:, None], 0, 1)
        paint = paint * (1 - F32(0.25) * light.rain[:, None]) * (1 - F32(0.55) * light.night[:, None])
        dark = np.zeros(len(day), F32)
        veil = 1 - light.clear
        for name, step, thick in (
            ("clouds", 23.0, np.ones_like(veil)),
            ("grey clouds", 17.0, np.clip(veil * 1.6, 0, 1)),
        ):
            if thick.max() <= 0.01:
                continue
            strip = self._cloud_strip(name, step, float(left.min()), float(left.max()) + self.view.wide)
            if name == "clouds":
                scroll(image, strip, left, moments, paint, np.zeros_like(paint), dark, labels)
            else:  # too thin to name a patch
                scroll(image, strip, left, moments, paint, np.zeros_like(paint), dark, thick=thick)

    def _cloud_strip(self, name: str, step: float, left: float, right: float) -> Strip:
        strip = Strip(self.view, left, right, KIND["cloud"])
        amount = np.zeros_like(strip.alpha)
        for x, u in cells(Stream(self.seed, name), strip, step, 0.8, 14):
            size, y = between(u[0], 0.7, 1.5), between(u[1], 0.07, 0.52) * SKY
            patch = strip.patch(x, y, 13 * size, 13 * size, 8 * size, 5 * size)
            if patch is None:
                continue
            bottom = np.clip((F32(1.8 * size) - patch.v) * F32(0.9 * self.view.scale) + F32(0.5), 0, 1)
            part = amount[patch.rows, patch.cols]
            for k in range(5):
                ox, oy = (k - 2) * 3.6 * size + between(u[2 + k], -1, 1), between(u[7 + k], -1.4, 0.6) * size
                oy, radius = (oy - 1.6 * size, 3.6 * size) if 0 < k < 4 else (oy, 2.6 * size)
                distance = np.sqrt((patch.u - F32(ox)) ** 2 + ((patch.v - F32(oy)) * F32(1.25)) ** 2) - F32(radius)
                np.maximum(part, np.clip(F32(0.5) - distance * F32(0.55), 0, 1) * bottom, out=part)
        strip.whole().lay(amount * F32(0.88), ink(1, 1, 1))
        return strip
