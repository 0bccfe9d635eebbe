"""Everything about a scene that varies with time, in closed form: any frame of the endless clip costs the same."""

from dataclasses import dataclass

import numpy as np

from causvid.worlds.vista.canvas import F32
from causvid.worlds.vista.palette import COLOUR_INKS, weather_veil
from causvid.worlds.vista.scene import CAMERAS, COLOURS, EVENT_SECONDS, LIGHTS, MOTIONS, WEATHERS, Scene, settle
from causvid.worlds.vista.streams import Stream

CAMERA_SPEEDS = {"static": 0.0, "pan left": -18.0, "pan right": 18.0, "sweep": 0.0, "follow": 24.0}  # units a second
SWEEP_UNITS, SWEEP_PERIOD = 15.0, 4.5


class Switch:
    """The values one attribute takes: values[j] holds from times[j] on, after a smooth change of `seconds`."""

    def __init__(self, first: str, seconds: float):
        self.seconds = seconds
        self.times, self.values = [-np.inf], [first]

    def add(self, time: float, value: str) -> None:
        if value != self.values[-1]:
            self.times.append(time)
            self.values.append(value)

    def ramps(self, t: np.ndarray) -> np.ndarray:
        """How far each change has come, [len(values) + 1, F], from ones (long in force) to zeros (never)."""
        rows = [np.ones_like(t)]
        for time in self.times[1:]:
            x = np.clip((t - time) / self.seconds, 0, 1)
            rows.append(np.minimum(rows[-1], x * x * (3 - 2 * x)))
        return np.stack([*rows, np.zeros_like(t)])

    def weights(self, t: np.ndarray) -> np.ndarray:
        """The share of each value, [len(values), F]; the shares of a frame sum to one."""
        ramps = self.ramps(t)
        return ramps[:-1] - ramps[1:]

    def integral(self, numbers: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Integral from 0 to t of the attribute's number: the distance gone at a speed that changes smoothly."""
        total = numbers[0] * t
        for time, step in zip(self.times[1:], np.diff(numbers), strict=True):
            x = (t - time) / self.seconds
            inside = np.clip(x, 0, 1)
            area = inside**3 - inside**4 / 2 + np.maximum(x - 1, 0)  # of the smooth step
            total = total + step * self.seconds * area
        return total

    def index(self, t: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """The name in force at each frame: the newer one from the middle of its change."""
        codes = np.array([names.index(v) for v in self.values])
        return codes[np.argmax(self.weights(t), axis=0)]

    def changing(self, t: np.ndarray) -> np.ndarray:
        busy = np.zeros(t.shape, bool)
        for time in self.times[1:]:
            busy |= (t > time) & (t < time + self.seconds)
        return busy


@dataclass
class State:
    """Per-frame truth of a clip, all arrays [F, ...]; lengths are in pixels of the rendered picture.

    `*_index` counts in the tuples of `scene` (LIGHTS, WEATHERS, COLOURS, MOTIONS, CAMERAS). `settled` is false while
    any event is under way. `patches` [T, H/p, W/p] says what covers each patch, if it was asked for (see truth.KINDS).
    """

    time: np.ndarray  # seconds of the endless clip
    light_angle: np.ndarray  # 0 day, 1 sunset, 2 night, 3 dawn, going on: 4 is the next day
    weather: np.ndarray  # [F, 3] amounts of rain, snow, fog
    night: np.ndarray  # 0 bright .. 1 dark
    camera_x: np.ndarray
    hero_x: np.ndarray
    hero_y: np.ndarray
    hero_colour: np.ndarray  # [F, 3] RGB in 0..1 before light
    hero_visible: np.ndarray  # share of the hero that is inside the picture and not hidden by the foreground
    motion_weights: np.ndarray  # [F, 13]
    second_x: np.ndarray  # NaN without a second entity
    second_y: np.ndarray
    light_index: np.ndarray
    weather_index: np.ndarray
    colour_index: np.ndarray
    motion_index: np.ndarray
    camera_index: np.ndarray
    settled: np.ndarray
    patches: np.ndarray | None = None

    def attributes(self, frame: int) -> dict[str, str]:
        """The names in force at a frame of this clip."""
        tables = {"light": LIGHTS, "weather": WEATHERS, "colour": COLOURS, "motion": MOTIONS, "camera": CAMERAS}
        indices = {
            "light": self.light_index,
            "weather": self.weather_index,
            "colour": self.colour_index,
            "motion": self.motion_index,
            "camera": self.camera_index,
        }
        return {name: tables[name][indices[name][frame]] for name in tables}


class Tracks:
    """The events of a scene, unrolled into one Switch per attribute, and what follows from them at times t [F]."""

    def __init__(self, scene: Scene, t: np.ndarray):
        self.scene, self.t = scene, t
        now = {
            "light": scene.light,
            "weather": scene.weather,
            "colour": scene.colour,
            "motion": scene.motion,
            "camera": scene.camera,
        }
        self.switches = {name: Switch(value, EVENT_SECONDS[name]) for name, value in now.items()}
        for event in scene.events:
            now = settle(now, event)
            for name, value in now.items():
                self.switches[name].add(event.time, value)
        self._lights()
        self._weathers()
        self._cameras()
        self.colour = self.switches["colour"].weights(t).T @ np.stack(
            [COLOUR_INKS[c] for c in self.switches["colour"].values]
        )
        self.colour = self.colour.astype(F32)

    def _lights(self) -> None:
        """The light angle only ever grows: the sun never runs backwards."""
        switch = self.switches["light"]
        angles = [float(LIGHTS.index(switch.values[0]))]
        for value in switch.values[1:]:
            angles.append(angles[-1] + (LIGHTS.index(value) - angles[-1]) % 4)
        self.angle = np.tensordot(np.array(angles), switch.weights(self.t), 1)
        dark = np.clip((np.clip(1 - np.abs(np.mod(self.angle, 4) - 2), 0, 1) - 0.15) / 0.8, 0, 1)
        self.night = (dark * dark * (3 - 2 * dark)).astype(F32)

    def _weathers(self) -> None:
        switch = self.switches["weather"]
        weights = switch.weights(self.t)
        amounts = {name: np.zeros_like(self.t) for name in WEATHERS}
        for value, weight in zip(switch.values, weights, strict=True):
            amounts[value] = amounts[value] + weight
        self.rain, self.snow, self.fog = (amounts[name].astype(F32) for name in ("rain", "snow", "fog"))
        self.veil = weather_veil(self.rain, self.snow, self.fog)

    def _cameras(self) -> None:
        switch = self.switches["camera"]
        speeds = np.array([CAMERA_SPEEDS[v] for v in switch.values])
        weights = switch.weights(self.t)
        phase = Stream(self.scene.seed, "camera").uniform(0, 2 * np.pi)
        sweeping = sum((w for v, w in zip(switch.values, weights, strict=True) if v == "sweep"), np.zeros_like(self.t))
        self.sweep = sweeping * SWEEP_UNITS * np.sin(2 * np.pi * self.t / SWEEP_PERIOD + phase)
        self.camera = switch.integral(speeds, self.t) + self.sweep
        self.travel_speed = np.tensordot(speeds, weights, 1)  # without the sweep: heroes do not chase it
        # the side of the first travel: stopping does not turn a train round
        self.travel_side = float(np.sign(next((s for s in speeds if s), 0)))

    def motion_weights(self) -> np.ndarray:
        """[13, F]"""
        switch = self.switches["motion"]
        total = np.zeros((len(MOTIONS), len(self.t)))
        for value, weight in zip(switch.values, switch.weights(self.t), strict=True):
            total[MOTIONS.index(value)] += weight
        return total

    def index(self, name: str, names: tuple[str, ...]) -> np.ndarray:
        return self.switches[name].index(self.t, names)

    def settled(self) -> np.ndarray:
        busy = np.zeros(self.t.shape, bool)
        for switch in self.switches.values():
            busy |= switch.changing(self.t)
        return ~busy
