"""The sea: a rippled mirror of everything above the horizon, small crests and the glitter of the sun."""

import numpy as np

from causvid.worlds.vista.canvas import F32, HEIGHT, HORIZON, View, ink
from causvid.worlds.vista.palette import Lighting
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.truth import KIND, Labels


def paint_sea(
    image: np.ndarray,
    seed: int,
    view: View,
    t: np.ndarray,
    camera: np.ndarray,
    light: Lighting,
    which: np.ndarray,
    sun_x: float,
    labels: Labels | None,
) -> None:
    top = int(HORIZON * view.scale)
    rows = view.height - top
    start = Stream(seed, "water").uniform(0, 100)
    clock = (t + start)[:, None]
    k = np.arange(rows, dtype=np.float64) / view.scale  # units below the horizon
    depth = k / (HEIGHT - HORIZON)
    source = np.clip(top - 1 - (np.arange(rows) * 0.95).astype(int), 0, None)
    amplitude = 0.4 + 2.2 * depth
    wobble = (
        amplitude
        * (np.sin(k * 1.15 / (1 + 0.03 * k) - clock * 3.0) + 0.6 * np.sin(k * 0.53 + 1.7 - clock * 1.9))
        * view.scale
    )
    columns = np.clip(np.arange(view.width)[None, None] + np.round(wobble).astype(int)[:, :, None], 0, view.width - 1)
    flat = source[None, :, None] * view.width + columns  # [F, rows, W]
    x = (np.arange(view.width, dtype=F32) + F32(0.5)) / F32(view.scale)
    fade = np.clip(0.60 - 0.38 * depth, 0, 1).astype(F32)[:, None]
    body = ink(0.06, 0.32, 0.46) * light.tint + F32(0.10) * light.low
    across = (x[None] * F32(0.16) + np.mod(clock * 1.3 + camera[:, None] * 0.16, 2 * np.pi).astype(F32))[:, None, :]
    down = (k * 1.9 / (1 + 0.05 * k)).astype(F32)[None, :, None] - np.mod(clock * 2.4, 2 * np.pi).astype(F32)[
        :, :, None
    ]
    ripple = np.sin(down + np.sin(across + (k * 0.7).astype(F32)[None, :, None]) * F32(1.5))
    glitter_shape = np.exp(-(((x[None] - F32(sun_x)) / (4 + 0.35 * k[:, None].astype(F32))) ** 2))
    crests = np.clip(ripple - F32(0.55), 0, 1)
    crests *= (F32(0.30) * (1 - F32(0.5) * light.night))[which][:, None, None]
    sparkle = light.daylight * F32(0.55)
    for i, moment in enumerate(which):
        frame = image[i].reshape(3, -1)
        sea = frame[:, flat[i]]
        sea *= fade
        sea += body[moment][:, None, None] * (1 - fade)
        sea += crests[i] * light.low[moment][:, None, None]
        if sparkle[moment] > 0.01:
            glitter = np.clip(ripple[i] + F32(0.2), 0, 1) * glitter_shape * sparkle[moment]
            sea += glitter * light.sun[moment][:, None, None]
        image[i][:, top:] = sea
        if labels is not None:
            labels.stamp(i, slice(top, None), slice(None), np.ones((rows, view.width), bool), KIND["water"])
