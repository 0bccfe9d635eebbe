"""What a clip shows, as a value: the attributes of a scene, which of them go together, and their JSON form."""

import json
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from causvid.errors import UserError

BIOMES = ("meadow", "forest", "desert", "snow", "sea", "city")
LIGHTS = ("day", "sunset", "night", "dawn")  # in the order of nature: the light angle is the index, cyclic
WEATHERS = ("clear", "rain", "snow", "fog")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
CAMERAS = ("static", "pan left", "pan right", "sweep", "follow")

LANES = {
    "car": "ground", "bus": "ground", "train": "ground", "ball": "ground", "rabbit": "ground",
    "bird": "air", "balloon": "air", "plane": "air", "ufo": "air",
    "boat": "water", "duck": "water",
}  # fmt: skip
HEROES = tuple(LANES)
MOTIONS = (
    "drives", "stays", "hops", "bounces", "rolls", "paces",
    "flies", "circles", "loops", "swoops", "floats", "bobs", "sails",
)  # fmt: skip
LEGAL_MOTIONS = {
    "car": ("drives", "stays", "hops"),
    "bus": ("drives", "stays"),
    "train": ("drives", "stays"),
    "ball": ("bounces", "rolls", "stays"),
    "rabbit": ("hops", "paces", "stays"),
    "bird": ("flies", "circles", "swoops"),
    "balloon": ("floats", "swoops", "stays"),
    "plane": ("flies", "loops", "circles"),
    "ufo": ("floats", "circles", "swoops", "stays"),
    "boat": ("sails", "bobs", "stays"),
    "duck": ("bobs", "sails", "stays"),
}
TRAVELS = ("drives", "flies")  # the camera goes along
NEXT_LIGHTS = {"day": ("sunset", "night"), "sunset": ("night",), "night": ("dawn", "day"), "dawn": ("day",)}
EVENT_KINDS = ("light", "weather", "colour", "motion", "camera")
EVENT_SECONDS = {"light": 1.6, "weather": 1.2, "colour": 1.0, "motion": 1.0, "camera": 1.0}


class Second(NamedTuple):
    """The other entity: always of another lane than the hero, smaller and calmer."""

    hero: str
    colour: str
    motion: str


class Event(NamedTuple):
    """From `time` (seconds of the endless clip) on, attribute `kind` moves smoothly to `target`."""

    time: float
    kind: str
    target: str


@dataclass(frozen=True)
class Scene:
    """One endless clip. Pixels are a pure function of this value, the picture size and the frame number."""

    seed: int
    biome: str = "meadow"
    light: str = "day"
    weather: str = "clear"
    hero: str = "car"
    colour: str = "red"
    motion: str = "drives"
    camera: str = "follow"
    second: Second | None = None
    events: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        allowed = {"biome": BIOMES, "light": LIGHTS, "weather": WEATHERS, "hero": HEROES, "colour": COLOURS,
                   "motion": MOTIONS, "camera": CAMERAS}  # fmt: skip
        for name, values in allowed.items():
            _require(name, getattr(self, name), values)
        if self.second is not None:
            _require("second hero", self.second.hero, HEROES)
            _require("second colour", self.second.colour, COLOURS)
            _require("second motion", self.second.motion, MOTIONS)
        for event in self.events:
            _require("event kind", event.kind, EVENT_KINDS)
            _require(event.kind, event.target, allowed[event.kind])
        if list(self.events) != sorted(self.events, key=lambda e: e.time):
            raise UserError("the events of a scene must be in the order of time: sort them.")

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"second": self.second, "events": self.events})

    @staticmethod
    def from_json(text: str) -> "Scene":
        values = json.loads(text)
        if values.get("second") is not None:
            values["second"] = Second(*values["second"])
        values["events"] = tuple(Event(*event) for event in values.get("events", ()))
        return Scene(**values)

    def after_events(self, until: float = float("inf")) -> "Scene":
        """The same scene with every event that starts before `until` already in force, and none to come."""
        now = {name: getattr(self, name) for name in EVENT_KINDS}
        for event in self.events:
            if event.time < until:
                now = settle(now, event)
        return replace(self, events=(), **now)


def settle(now: dict[str, str], event: Event) -> dict[str, str]:
    """Attributes once `event` is over; setting off takes the camera along and stopping stops it."""
    after = now | {event.kind: event.target}
    if event.kind == "motion":
        if event.target in TRAVELS:
            after["camera"] = "follow"
        elif now["motion"] in TRAVELS:
            after["camera"] = "static"
    return after


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} {value!r} is unknown to Vista: choose one of {', '.join(allowed)}.")
