"""Drawing scenes and timelines: what is trained on, and what is held out by rule."""

from collections.abc import Sequence
from dataclasses import replace

from causvid.errors import UserError
from causvid.worlds.vista.motion import CALM
from causvid.worlds.vista.scene import (
    BIOMES,
    COLOURS,
    EVENT_KINDS,
    EVENT_SECONDS,
    HEROES,
    LANES,
    LEGAL_MOTIONS,
    LIGHTS,
    NEXT_LIGHTS,
    TRAVELS,
    WEATHERS,
    Event,
    Scene,
    Second,
    settle,
)
from causvid.worlds.vista.streams import Stream

SPLITS = ("train", "val", "compose", "order", "paraphrase", "timeline", "revisit")
SEEDS_PER_SPLIT = 2**31
CLIP_SECONDS = 81 / 12

HELD_HERO_COLOUR = frozenset(
    {
        ("duck", "red"),
        ("plane", "orange"),
        ("balloon", "yellow"),
        ("train", "green"),
        ("rabbit", "blue"),
        ("boat", "purple"),
        ("car", "pink"),
        ("ufo", "white"),
    }
)
HELD_BIOME_LIGHT = frozenset({("forest", "night"), ("desert", "dawn"), ("snow", "sunset")})
HELD_BIOME_WEATHER = frozenset({("desert", "snow"), ("city", "fog"), ("sea", "snow")})


def held_out(scene: Scene) -> set[str]:
    """Which held-out rules a scene touches at any time: hero colour, biome light, biome weather, order of events."""
    found = set()
    if scene.second is not None and scene.second[:2] in HELD_HERO_COLOUR:
        found.add("hero colour")
    now = {name: vars(scene)[name] for name in EVENT_KINDS}
    for state in [now, *(now := settle(now, event) for event in scene.events)]:
        if (scene.hero, state["colour"]) in HELD_HERO_COLOUR:
            found.add("hero colour")
        if (scene.biome, state["light"]) in HELD_BIOME_LIGHT:
            found.add("biome light")
        if (scene.biome, state["weather"]) in HELD_BIOME_WEATHER:
            found.add("biome weather")
    kinds = [event.kind for event in scene.events]
    if "light" in kinds and "weather" in kinds and kinds.index("weather") < kinds.index("light"):
        found.add("order")
    return found


def sample_scene(seed: int, split: str = "train") -> Scene:
    """Scene number `seed` of a split. Splits never share a layout: each has its own 2^31 seeds."""
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if not 0 <= seed < SEEDS_PER_SPLIT:
        raise UserError(f"seed {seed} is outside 0 .. 2^31-1: pick a smaller one; every split has that many.")
    if split == "timeline":
        return sample_timeline_scene(seed, 30.0)
    layout = SPLITS.index(split) * SEEDS_PER_SPLIT + seed
    stream = Stream(layout, "attributes")
    while True:
        scene = _draw(layout, stream, split)
        broken = held_out(scene)
        if {"compose": bool(broken - {"order"}), "order": broken == {"order"}}.get(split, not broken):
            return scene


def _draw(layout: int, stream: Stream, split: str) -> Scene:
    biome = stream.pick(BIOMES)
    floor = "water" if biome == "sea" else "ground"
    lane = "air" if stream.chance(0.40) else floor
    hero = stream.pick([h for h in HEROES if LANES[h] == lane])
    motion = stream.pick(LEGAL_MOTIONS[hero])
    scene = Scene(
        layout,
        biome,
        stream.pick(LIGHTS),
        stream.pick(("clear", "clear", *WEATHERS)),
        hero,
        stream.pick(COLOURS),
        motion,
        draw_camera(stream, motion),
    )
    if split == "compose":
        scene = _hold_out(scene, stream)
    if split == "revisit":
        calm = [m for m in LEGAL_MOTIONS[hero] if m not in TRAVELS]
        return replace(scene, motion=stream.pick(calm or LEGAL_MOTIONS[hero]), camera="sweep")
    if stream.chance(0.30):
        other = stream.pick([h for h in HEROES if LANES[h] == (floor if lane == "air" else "air")])
        scene = replace(scene, second=Second(other, stream.pick(COLOURS), CALM.get(other, "stays")))
    kinds = ("weather", "light") if split == "order" else _draw_kinds(stream)
    times = [stream.uniform(0.5, 4.4)] if len(kinds) == 1 else [stream.uniform(0.5, 1.8), stream.uniform(3.5, 4.4)]
    for time, kind in zip(times, kinds, strict=False):
        scene = add_event(scene, stream, time, kind)
    return scene


def _hold_out(scene: Scene, stream: Stream) -> Scene:
    """The scene with one held-out pair put in, where its biome or hero has one."""
    changes = [replace(scene, colour=colour) for hero, colour in HELD_HERO_COLOUR if hero == scene.hero]
    changes += [replace(scene, light=light) for biome, light in HELD_BIOME_LIGHT if biome == scene.biome]
    changes += [replace(scene, weather=weather) for biome, weather in HELD_BIOME_WEATHER if biome == scene.biome]
    return stream.pick(changes) if changes else scene


def draw_camera(stream: Stream, motion: str) -> str:
    """A thing that stays put is not dragged along by a moving camera; only a sweep comes back to it."""
    draw = stream.uniform()
    if motion in TRAVELS:
        return "follow"
    if motion == "stays":
        return "static" if draw < 0.6 else "sweep"
    return "static" if draw < 0.40 else "pan left" if draw < 0.60 else "pan right" if draw < 0.80 else "sweep"


def complete(wanted: dict[str, str], events: Sequence[Event], seed: int) -> Scene:
    """A scene with the `wanted` attributes (named as in Parsed.attributes); the others are drawn to suit them."""
    stream = Stream(seed, "prompt")
    heroes = [h for h in HEROES if wanted.get("motion", LEGAL_MOTIONS[h][0]) in LEGAL_MOTIONS[h]] or list(HEROES)
    if "biome" in wanted:
        absent = "ground" if wanted["biome"] == "sea" else "water"
        heroes = [h for h in heroes if LANES[h] != absent] or heroes
    hero = wanted.get("hero") or stream.pick(heroes)
    home = {"ground": BIOMES[:4] + BIOMES[5:], "water": ("sea",), "air": BIOMES}[LANES[hero]]
    motion = wanted.get("motion") or stream.pick(LEGAL_MOTIONS[hero])
    second = None
    if "second hero" in wanted:
        other = wanted["second hero"]
        calm = wanted.get("second motion", CALM.get(other, "stays"))
        second = Second(other, wanted.get("second colour") or stream.pick(COLOURS), calm)
    return Scene(
        seed,
        wanted.get("biome") or stream.pick(home),
        wanted.get("light") or stream.pick(LIGHTS),
        wanted.get("weather") or stream.pick(("clear", "clear", *WEATHERS)),
        hero,
        wanted.get("colour") or stream.pick(COLOURS),
        motion,
        wanted.get("camera") or draw_camera(stream, motion),
        second,
        tuple(events),
    )


def _draw_kinds(stream: Stream) -> tuple[str, ...]:
    draw = stream.uniform()
    count = 0 if draw < 0.35 else 1 if draw < 0.80 else 2
    kinds = stream.shuffled(EVENT_KINDS)[:count]
    if set(kinds) == {"light", "weather"}:
        return "light", "weather"  # the other order is held out
    return tuple(kinds)


def successors(scene: Scene, kind: str) -> list[str]:
    """The legal targets of an event of `kind` after everything in `scene` has happened."""
    now = {name: vars(scene)[name] for name in EVENT_KINDS}
    for event in scene.events:
        now = settle(now, event)
    if kind == "light":
        return list(NEXT_LIGHTS[now["light"]])
    if kind == "weather":
        return [w for w in WEATHERS if w != now["weather"]]
    if kind == "colour":
        return [c for c in COLOURS if c != now["colour"]]
    if kind == "motion":
        moving = now["camera"].startswith("pan")
        return [m for m in LEGAL_MOTIONS[scene.hero] if m != now["motion"] and not (moving and m == "stays")]
    if now["motion"] in TRAVELS:
        return []
    allowed = ("static", "sweep") if now["motion"] == "stays" else ("static", "pan left", "pan right", "sweep")
    return [c for c in allowed if c != now["camera"]]


def add_event(scene: Scene, stream: Stream, time: float, kind: str) -> Scene:
    """The scene with one more event, or unchanged where `kind` has no legal target now."""
    targets = successors(scene, kind)
    if not targets:
        return scene
    return replace(scene, events=(*scene.events, Event(round(time, 3), kind, stream.pick(targets))))


def sample_timeline_scene(seed: int, seconds: float) -> Scene:
    """A long scene with a legal switch every 4 to 8 s."""
    layout = SPLITS.index("timeline") * SEEDS_PER_SPLIT + seed
    stream = Stream(layout, "timeline")
    while True:
        scene = replace(_draw(layout, stream, "timeline"), events=())
        if not held_out(scene):
            break
    time, previous = stream.uniform(4, 8), ""
    while time + max(EVENT_SECONDS.values()) < seconds:
        trial = add_event(scene, stream, time, stream.pick([k for k in EVENT_KINDS if k != previous]))
        if trial is not scene and not held_out(trial) - {"order"}:
            scene, previous = trial, trial.events[-1].kind
            time += stream.uniform(4, 8)
    return scene


def sample_timeline(seed: int, seconds: float = 30.0) -> list[tuple[float, Scene]]:
    """(start second, the scene in force from there on). Rendering the first scene's whole clip is the ground truth:

    every entry is the same scene with the earlier events settled, and `timeline_scene` joins them again.
    """
    whole = sample_timeline_scene(seed, seconds)
    starts = [0.0, *(event.time for event in whole.events)]
    return [(start, whole.after_events(start + 1e-6)) for start in starts]


def timeline_scene(timeline: list[tuple[float, Scene]]) -> Scene:
    """One renderable scene from (start second, scene) entries: every attribute that differs becomes an event."""
    scene = timeline[0][1]
    for start, target in timeline[1:]:
        now = scene.after_events()
        if replace(target, **{kind: vars(now)[kind] for kind in EVENT_KINDS}) != now:
            raise UserError(
                f"the prompt at {start:g} s changes more than light, weather, colour, motion or camera: keep the rest."
            )
        for kind in ("motion", "camera", "light", "weather", "colour"):
            if vars(target)[kind] != vars(scene.after_events())[kind]:
                scene = replace(scene, events=(*scene.events, Event(start, kind, vars(target)[kind])))
    return scene
