"""render(scene): the pixels and the truth of any stretch of an endless clip, as a pure function."""

from dataclasses import replace
from typing import Any

import numpy as np

from causvid.errors import UserError
from causvid.worlds.vista.canvas import F32, PATH, View, ink, smooth
from causvid.worlds.vista.foreground import foreground_strip, has_foreground
from causvid.worlds.vista.heroes import FIGURES
from causvid.worlds.vista.layers import Moments, scroll, solid_from
from causvid.worlds.vista.motion import Path, walk
from causvid.worlds.vista.palette import COLOUR_INKS, Lighting, lighting
from causvid.worlds.vista.scene import CAMERAS, COLOURS, LANES, LIGHTS, MOTIONS, WEATHERS, Scene
from causvid.worlds.vista.scenery import DEPTHS, Landscape
from causvid.worlds.vista.sky import Sky
from causvid.worlds.vista.tracks import State, Tracks
from causvid.worlds.vista.truth import KIND, Labels, latent_frames, patch_classes
from causvid.worlds.vista.water import paint_sea
from causvid.worlds.vista.weather import paint_fall, paint_fog
from causvid.worlds.vista.window import Window

SEGMENT = 96  # frames drawn at once; longer clips are drawn piece by piece with the same result

_HAZE = {"fog": (0.70, 0.55, 0.25), "rain": (0.25, 0.18, 0.06), "snow": (0.25, 0.15, 0.05)}  # per layer, far to near


def render(
    scene: Scene,
    num_frames: int = 81,
    height: int = 64,
    width: int = 112,
    fps: float = 12,
    start_frame: int = 0,
    patch: int = 0,
) -> tuple[np.ndarray, State]:
    """Frames uint8 [F, H, W, 3] and their truth. With `patch` > 0, State.patches says what covers each patch."""
    if num_frames < 1 or height < 16 or width < 16:
        raise UserError(f"cannot render {num_frames} frames of {height}x{width}: ask for one frame of 16x16 or more.")
    if patch and (height % patch or width % patch):
        raise UserError(f"patches of {patch} pixels do not tile {height}x{width}: choose a patch that divides both.")
    chosen = latent_frames(num_frames) if patch else np.empty(0, int)
    frames, state, maps = _draw(scene, num_frames, View(height, width), fps, start_frame, chosen)
    return frames, replace(state, patches=patch_classes(maps, patch) if patch else None)


def class_maps(
    scene: Scene, num_frames: int = 81, height: int = 64, width: int = 112, fps: float = 12, start_frame: int = 0
) -> np.ndarray:
    """What each pixel of each frame shows, [F, H, W] of numbers in truth.KINDS: the source of blockouts."""
    return _draw(scene, num_frames, View(height, width), fps, start_frame, np.arange(num_frames))[2]


def _draw(
    scene: Scene, num_frames: int, view: View, fps: float, start_frame: int, labelled: np.ndarray
) -> tuple[np.ndarray, State, np.ndarray]:
    """Frames, truth, and class maps of the `labelled` frames; drawn in pieces, which changes nothing but memory."""
    frames = np.empty((num_frames, view.height, view.width, 3), np.uint8)
    states, maps = [], []
    for first in range(0, num_frames, SEGMENT):
        count = min(SEGMENT, num_frames - first)
        t = (start_frame + first + np.arange(count)) / fps
        inside = labelled[(labelled >= first) & (labelled < first + count)] - first
        labels = Labels(inside, view.height, view.width)
        states.append(_draw_piece(scene, view, t, frames[first : first + count], labels if len(inside) else None))
        maps.append(labels.maps)
    return frames, _join(states), np.concatenate(maps)


def _join(states: list[State]) -> State:
    """The truth of consecutive pieces as one."""
    if len(states) == 1:
        return states[0]
    joined: dict[str, Any] = {}
    for name in vars(states[0]):
        parts = [vars(state)[name] for state in states]
        joined[name] = None if parts[0] is None else np.concatenate(parts)
    return State(**joined)


def _draw_piece(scene: Scene, view: View, t: np.ndarray, out: np.ndarray, labels: Labels | None) -> State:
    tracks = Tracks(scene, t)
    moments, values = Moments.of(np.mod(tracks.angle, 4), tracks.rain, tracks.snow, tracks.fog)
    first = np.array([group[0] for group in moments.groups])
    rain, snow, fog = (column.astype(F32) for column in values.T[1:])
    light = lighting(values[:, 0], tracks.night[first], rain, snow, fog, scene.biome)
    image = np.empty((len(t), 3, view.height, view.width), F32)

    sky = Sky(scene.seed, view)
    sky.paint(image, t, tracks.camera, light, moments, labels)
    _paint_land(image, scene, view, tracks.camera, light, moments, labels)
    weights = tracks.motion_weights()
    hero = walk(scene.hero, weights, tracks, view.wide, "hero")
    second = _second_path(scene, tracks, view, hero)
    if scene.biome == "sea":
        paint_sea(image, scene.seed, view, t, tracks.camera, light, moments.which, sky.sun_x, labels)
    paint_fog(image, view, light, moments.which)
    if scene.second is not None and second is not None:
        colour = np.repeat(COLOUR_INKS[scene.second.colour][None], len(t), 0)
        _paint_figure(
            image, scene.second.hero, second, colour, view, sky, tracks, light, moments, labels, KIND["second"]
        )
    shape = _paint_figure(
        image, scene.hero, hero, tracks.colour, view, sky, tracks, light, moments, labels, KIND["hero"]
    )
    visible = _paint_foreground(image, scene, view, tracks, light, moments, labels, shape)
    paint_fall(image, scene.seed, view, t, tracks.camera, light, moments.which)
    _to_bytes(image, out)
    return _state(scene, view, tracks, hero, second, weights, visible)


def _to_bytes(image: np.ndarray, out: np.ndarray) -> None:
    for frame, target in zip(image, out, strict=True):
        np.clip(frame, 0, 1, out=frame)
        frame *= 255
        frame += F32(0.5)
        np.copyto(target.transpose(2, 0, 1), frame, casting="unsafe")


def _haze(light: Lighting, layer: int, clear_air: float) -> np.ndarray:
    """How much of a layer's colour the air replaces, [N]."""
    amount = clear_air * (1 - F32(0.35) * light.night)
    for name, strengths in _HAZE.items():
        amount = amount + vars(light)[name] * F32(strengths[layer])
    return np.clip(amount, 0, 0.95).astype(F32)


def _paint_land(
    image: np.ndarray,
    scene: Scene,
    view: View,
    camera: np.ndarray,
    light: Lighting,
    moments: Moments,
    labels: Labels | None,
) -> None:
    spans = [(float(camera.min()) * p, float(camera.max()) * p + view.wide) for p in DEPTHS]
    landscape = Landscape(scene.biome, scene.seed, view, spans)
    clear_air = (0.40, 0.12, 0.0) if scene.biome == "city" else (0.55, 0.22, 0.0)
    air = light.low * F32(0.8) + light.middle * F32(0.2)
    floors = [solid_from(strip) for strip, _ in landscape.strips[1:]] + [view.height]
    for layer, (strip, depth) in enumerate(landscape.strips):
        haze = _haze(light, layer, clear_air[layer])[:, None]
        scroll(
            image,
            strip,
            camera * depth,
            moments,
            light.tint * (1 - haze),
            air * haze,
            light.night * (1 - F32(0.6) * haze[:, 0]),
            labels,
            floor=min(floors[layer:]),
        )


def _second_path(scene: Scene, tracks: Tracks, view: View, hero: Path) -> Path | None:
    if scene.second is None:
        return None
    weights = np.zeros((len(MOTIONS), len(tracks.t)))
    weights[MOTIONS.index(scene.second.motion)] = 1
    first = walk(scene.hero, np.zeros_like(weights), tracks, view.wide, "hero")
    rest = float((first.x + (0.6 if LANES[scene.hero] == "air" else 1.0) * tracks.sweep).mean())
    return walk(scene.second.hero, weights, tracks, view.wide, "second", rest)


def _paint_figure(
    image: np.ndarray,
    hero: str,
    path: Path,
    colour: np.ndarray,
    view: View,
    sky: Sky,
    tracks: Tracks,
    light: Lighting,
    moments: Moments,
    labels: Labels | None,
    kind: int,
) -> Window:
    figure, which = FIGURES[hero], moments.which
    lane = LANES[hero]
    if lane == "ground":
        _shadow(image, hero, path, view, sky, tracks)
    window = Window(view, path.x, path.y, figure.radius, path.size, path.turn, path.facing)
    steady = (colour == colour[0]).all()
    figure.draw(window, colour[0] if steady else colour, path.phase, light.night[which])
    window.rgb *= light.hero_tint[which][:, :, None, None]
    fog = light.fog[which] * F32(0.36)
    if fog.any():
        mist = (light.low + light.low.mean(1, keepdims=True))[
            which
        ] / 2  # greyer than the air, so that paints keep their hue
        window.rgb += fog[:, None, None, None] * (window.alpha[:, None] * mist[:, :, None, None] - window.rgb)
    if lane == "water":
        _reflection(image, window, path, figure.down, view)
    window.lay_on(image)
    if labels is not None:
        for i, there, here in window.places():
            labels.stamp(i, *there, window.alpha[i][here] > 0.5, kind)
    return window


def _shadow(image: np.ndarray, hero: str, path: Path, view: View, sky: Sky, tracks: Tracks) -> None:
    """Away from the sun, paler and smaller the higher the hero is."""
    figure = FIGURES[hero]
    sunny = np.where(np.mod(tracks.angle, 4) < 2, -1.0, 1.0) * (1.0 if not sky.sun_left else -1.0)
    height = np.clip(path.lift / 18.0, 0, 1)
    window = Window(view, path.x + sunny * 1.5, np.full(len(path.x), PATH + 0.6), figure.side * path.size * 1.2 + 2)
    radius = (figure.side * path.size * 1.02 * (1 - 0.45 * height))[:, None, None].astype(F32)
    depth = ((0.48 - 0.28 * height) * (1 - 0.35 * tracks.night)).astype(F32)[:, None, None]
    rows = slice(max(0, window.half - int(4 * view.scale)), window.half + int(4 * view.scale) + 1)
    near = np.clip(F32(1.15) - np.hypot(window.u / radius, window.v[:, rows] / F32(2.3)), 0, 1)
    window.alpha[:, rows] = smooth(0, 0.6, near) * depth
    window.rgb += window.alpha[:, None] * ink(0.04, 0.04, 0.10)[:, None, None]
    window.lay_on(image)


def _reflection(image: np.ndarray, window: Window, path: Path, down: float, view: View) -> None:
    """The hull's own dark mirror image, fading with depth."""
    mirror = Window(view, path.x, path.y + 2 * (down - 0.6) * path.size, window.half / float(window.scale), path.size)
    rows = min(mirror.rgb.shape[2], window.rgb.shape[2])
    fade = np.linspace(0.45, 0.05, rows, dtype=F32)[:, None]
    mirror.rgb[:, :, :rows, :rows] = window.rgb[:, :, ::-1, :][:, :, :rows, :rows] * fade * F32(0.75)
    mirror.alpha[:, :rows, :rows] = window.alpha[:, ::-1, :][:, :rows, :rows] * fade
    mirror.lay_on(image)


def _paint_foreground(
    image: np.ndarray,
    scene: Scene,
    view: View,
    tracks: Tracks,
    light: Lighting,
    moments: Moments,
    labels: Labels | None,
    hero: Window,
) -> np.ndarray:
    """Lay the foreground, and say how much of the hero is still to be seen, [F]."""
    whole = np.maximum(hero.alpha.sum((1, 2)), 1e-6)
    seen = np.zeros(len(tracks.t))
    for i, _, here in hero.places():
        seen[i] = hero.alpha[i][here].sum()
    if not has_foreground(scene.seed):
        return seen / whole
    rest = walk(scene.hero, np.zeros((len(MOTIONS), len(tracks.t))), tracks, view.wide, "hero")
    depth = 0.6 if LANES[scene.hero] == "air" else 1.0
    strip, edge = foreground_strip(
        scene.biome, scene.seed, view, tracks.camera, float((rest.x + depth * tracks.sweep)[0])
    )
    haze = _haze(light, 2, 0.0)[:, None] * F32(0.5)
    scroll(image, strip, edge, moments, light.tint * F32(0.92) * (1 - haze), light.low * haze, light.night, labels)
    half = np.round(edge * view.scale * 2).astype(int) - 2 * strip.first
    for i, there, here in hero.places():
        columns = slice(half[i] + 2 * there[1].start, half[i] + 2 * there[1].stop, 2)
        seen[i] -= (hero.alpha[i][here] * strip.alpha[there[0], columns]).sum()
    return seen / whole


def _state(
    scene: Scene, view: View, tracks: Tracks, hero: Path, second: Path | None, weights: np.ndarray, visible: np.ndarray
) -> State:
    nowhere = np.full(len(tracks.t), np.nan)
    return State(
        time=tracks.t,
        light_angle=tracks.angle,
        weather=np.stack([tracks.rain, tracks.snow, tracks.fog], 1),
        night=tracks.night,
        camera_x=tracks.camera * view.scale,
        hero_x=hero.x * view.scale,
        hero_y=hero.y * view.scale,
        hero_colour=tracks.colour,
        hero_visible=np.clip(visible, 0, 1),
        motion_weights=weights.T,
        second_x=nowhere if second is None else second.x * view.scale,
        second_y=nowhere if second is None else second.y * view.scale,
        light_index=tracks.index("light", LIGHTS),
        weather_index=tracks.index("weather", WEATHERS),
        colour_index=tracks.index("colour", COLOURS),
        motion_index=tracks.index("motion", MOTIONS),
        camera_index=tracks.index("camera", CAMERAS),
        settled=tracks.settled(),
    )


def patch_truth(
    scene: Scene,
    num_frames: int = 81,
    height: int = 64,
    width: int = 112,
    patch: int = 16,
    fps: float = 12,
    start_frame: int = 0,
) -> np.ndarray:
    """What covers each patch of each latent frame, [T, H/p, W/p] of numbers in truth.KINDS. See render(patch=...)."""
    patches = render(scene, num_frames, height, width, fps, start_frame, patch)[1].patches
    assert patches is not None
    return patches
