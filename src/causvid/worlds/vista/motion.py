"""Where heroes are: periodic paths with a random phase, so that all windows of an endless clip look alike."""

from dataclasses import dataclass

import numpy as np

from causvid.worlds.vista.canvas import F32, HORIZON, PATH
from causvid.worlds.vista.heroes import FIGURES
from causvid.worlds.vista.scene import LANES, MOTIONS
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.tracks import Tracks

AIR_DEPTH = 0.6  # parallax of air heroes when the camera sweeps
WATER_LINE = HORIZON + 11.5
CALM = {"bird": "flies", "plane": "flies", "balloon": "floats", "ufo": "floats", "boat": "bobs", "duck": "bobs"}
_SYMMETRIC = ("ball", "balloon", "ufo")
_REACH = {"loops": 8.0, "circles": 8.0, "swoops": 7.0, "flies": 1.5, "floats": 2.6}  # vertical amplitude in the air


@dataclass
class Path:
    """Centres in units, [F] each; `turn` in radians clockwise, `facing` -1 left .. 1 right, `lift` above the ground."""

    x: np.ndarray
    y: np.ndarray
    turn: np.ndarray
    phase: np.ndarray
    facing: np.ndarray
    lift: np.ndarray
    size: float


def hero_size(hero: str, secondary: bool) -> float:
    return FIGURES[hero].size * (0.68 if secondary else 1.0)


def anchor(hero: str, stream: Stream, wide: float, others_x: float | None) -> tuple[float, float]:
    """The resting place: for the hero near the middle, for the second entity on the other side."""
    figure, size = FIGURES[hero], hero_size(hero, others_x is not None)
    u, v = stream.uniform(), stream.uniform()
    if others_x is None:
        x = wide * (0.42 + 0.16 * u)
    else:
        x = wide * (0.20 + 0.06 * u if others_x > wide / 2 else 0.80 - 0.06 * u)
    lane = LANES[hero]
    if lane == "ground":
        return x, PATH - figure.down * size
    if lane == "water":
        return x, WATER_LINE - (figure.down - 2.0) * size + (3.0 * v if others_x is None else -2.5)
    if others_x is not None:
        return x, max(figure.up * size + 2.5, 9.0 + 5.0 * v)
    tall = max(figure.up, figure.side if hero == "plane" else 0.0)
    return x, max(17.0 + 6.0 * v, tall * size + 1.0 + (8.0 if hero != "balloon" else 7.0))


def walk(
    hero: str, weights: np.ndarray, tracks: Tracks, wide: float, component: str, others_x: float | None = None
) -> Path:
    """The path of a hero whose motions have `weights` [13, F]; components keep their own stream."""
    stream = Stream(tracks.scene.seed, component)
    cx, cy = anchor(hero, stream, wide, others_x)
    start, resting_side = stream.uniform(0, 2 * np.pi), 1.0 if stream.chance(0.6) else -1.0
    heading = tracks.travel_side or resting_side
    figure, size, t = FIGURES[hero], hero_size(hero, others_x is not None), tracks.t
    span = wide * (1.0 if others_x is None else 0.45)
    x, y, speed, turn, lift = (np.zeros_like(t) for _ in range(5))
    wrapped = np.zeros_like(t)
    for motion, weight in zip(MOTIONS, weights, strict=True):
        if not weight.any():
            continue
        dx, dy, vx, angle = step(motion, t, start, span, 1.0 if others_x is None else 0.5)
        x += weight * dx
        y += weight * dy
        speed += weight * vx
        wrapped = wrapped + weight * (np.mod(angle + np.pi, 2 * np.pi) - np.pi)
        turn = wrapped
    if LANES[hero] == "ground":
        lift = -y
    depth = AIR_DEPTH if LANES[hero] == "air" else 1.0
    world = tracks.camera - tracks.sweep + x
    px = cx + x - depth * tracks.sweep
    phase = world / (figure.wheel * size) if figure.wheel else figure.beat * t + start
    if hero == "ball":
        phase = phase + 0.6 * np.sin(t * 1.1 + start)  # a ball that bounces on the spot still turns a little
    going = speed + tracks.travel_speed
    facing = np.clip((going + 5.0 * heading) / 5.0, -1, 1)
    if hero in _SYMMETRIC:
        facing = np.ones_like(t)
    looping = weights[MOTIONS.index("loops")]
    facing = facing * (1 - looping) + looping  # its turn already follows the circle
    facing = np.where(facing < 0, np.minimum(facing, -0.3), np.maximum(facing, 0.3))
    return Path(px, cy + y, turn, phase, facing.astype(F32), lift, size)


def step(
    motion: str, t: np.ndarray, start: float, wide: float, calm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offset x, y, speed along x and turn of one motion. `calm` < 1 shrinks the second entity's moves."""
    zero = np.zeros_like(t)

    def swing(share: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
        return share * wide * np.sin(rate * t + start), share * wide * rate * np.cos(rate * t + start)

    match motion:
        case "drives":
            return zero, 0.3 * np.sin(t * 14 + start), zero, zero
        case "hops":
            return zero, -13.0 * calm * np.abs(np.sin(t * np.pi * 1.15 + start)), zero, zero
        case "bounces":
            return zero, -23.0 * calm * np.abs(np.sin(t * np.pi * 0.95 + start)), zero, zero
        case "rolls":
            x, speed = swing(0.27, 1.5)
            return x, zero, speed, zero
        case "paces":
            x, speed = swing(0.25, 1.35)
            return x, -1.8 * np.abs(np.sin(t * 6 + start)), speed, zero
        case "flies":
            x, speed = swing(0.10, 0.9)
            return x, _REACH[motion] * np.sin(t * 2.1 + start), speed, 0.05 * np.sin(t * 2.1 + start + 1.6)
        case "circles":
            angle = t * 1.7 + start
            return (
                0.24 * wide * np.cos(angle),
                _REACH[motion] * calm * np.sin(angle),
                -0.24 * 1.7 * wide * np.sin(angle),
                zero,
            )
        case "loops":
            angle = t * 2.4 + start
            return 0.11 * wide * np.cos(angle), _REACH[motion] * np.sin(angle), zero, angle + np.pi / 2
        case "swoops":
            x, speed = swing(0.25, 1.15)
            return x, _REACH[motion] * np.cos(t * 2.3 + 2 * start), speed, zero
        case "floats" | "bobs":
            return zero, 2.6 * np.sin(t * 1.6 + start), zero, 0.07 * np.sin(t * 1.6 + start + 1)
        case "sails":
            x, speed = swing(0.22, 0.8)
            return x, 1.1 * np.sin(t * 2.2 + start), speed, 0.06 * np.sin(t * 2.2 + start + 1)
    return zero, zero, zero, zero  # stays
