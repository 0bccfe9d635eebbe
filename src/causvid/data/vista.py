"""Vista's clips for training: which scenes go into which pool, and what a patch is said to show."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from causvid.codecs import num_pixel_frames
from causvid.data.clips import Clip, PoolSpec, ends_of, write_cache
from causvid.noise import mix
from causvid.worlds import vista
from causvid.worlds.vista.captions import DROP, caption, describe
from causvid.worlds.vista.truth import KIND, KINDS, latent_frames

HEIGHT, WIDTH, FPS = 64, 112, 12
TOKEN_PIXELS = 16  # a patch of the network: 2 x 2 latents of 8 x 8 pixels
CAPTIONS_PER_CLIP = 4
VIEWS_PER_SCENE = 4  # drawing the scenery is most of the cost of one picture, so a scene gives several
FIRST_UNSEEN = 1_700_000_000  # seeds from here on are of clips that nothing learns from
FIRST_CHANGING = 1_800_000_000  # seeds from here on are of clips in which light, weather or a colour changes
CHANGES = ("light", "weather", "colour")
SCENES_PER_CHANGING = 32  # are looked through for one that changes; nearly every second does
FIRST_SELDOM = 2_000_000_000  # seeds from here on are of clips in which something moves as it seldom does
# Views go right with whatever travels, too, so networks learn it three times as often; the motions are small or fast.
SELDOM = tuple((kind, value) for motion in ("bobs", "bounces", "circles", "floats", "hops", "loops")
               for kind, value in (("camera", "pan left"), ("motion", motion)))  # fmt: skip
SCENES_PER_SELDOM = 512  # are looked through for the one; every fortieth has the least of them

# A patch of hero or second entity is told apart by what it is and its colour; scenery by its kind.
FIRST_FIGURE = len(KINDS)
NUM_CLASSES = FIRST_FIGURE + len(vista.HEROES) * len(vista.COLOURS)


@dataclass(frozen=True)
class VistaSource:
    """Clips of one latent frame are pictures of endless clips at any time; longer ones start anywhere in time. Events
    happen only in clips of `event_frames` or more: a caption must not tell what a shorter one has no time to show."""

    event_frames: int = 21

    def __call__(self, seeds: Sequence[int], num_latents: int) -> list[Clip]:
        if num_latents == 1:
            by_scene = groupby(seeds, key=lambda seed: seed // VIEWS_PER_SCENE)
            return [clip for scene, views in by_scene for clip in self._pictures(scene, list(views))]
        return [self._clip(seed, num_latents) for seed in seeds]

    def _clip(self, seed: int, num_latents: int) -> Clip:
        scene = scene_of(seed)
        start = 0  # the events of a scene are timed for a clip that starts here
        if num_latents < self.event_frames:
            scene, start = replace(scene, events=()), mix(seed) % (600 * FPS)
        frames, state = vista.render(
            scene, num_pixel_frames(num_latents), HEIGHT, WIDTH, FPS, start_frame=start, patch=TOKEN_PIXELS
        )
        camera = state.camera_x[latent_frames(len(state.camera_x))].astype(np.float32)
        told = _captions(scene, seed)
        return Clip(frames, told, patch_classes(scene, state), patch_motions(state), camera - camera[0])

    def _pictures(self, scene_seed: int, seeds: list[int]) -> list[Clip]:
        scene = replace(vista.sample_scene(scene_seed), events=())
        # one very slow film: its pictures are seconds apart, and those that stand for a latent frame come with truth
        num_frames = num_pixel_frames(VIEWS_PER_SCENE) - 1
        fps = 1 / (2 + mix(scene_seed) % 1000 / 500)
        frames, state = vista.render(scene, num_frames, HEIGHT, WIDTH, fps, patch=TOKEN_PIXELS)
        chosen, classes = latent_frames(num_frames), patch_classes(scene, state)
        views = [(seed, seed % VIEWS_PER_SCENE) for seed in seeds]
        return [Clip(frames[chosen[view]][None], _captions(scene, seed), classes[view][None]) for seed, view in views]


def scene_of(seed: int) -> vista.Scene:
    if seed >= FIRST_SELDOM:
        return seldom_scene(seed)
    return changing_scene(seed) if seed >= FIRST_CHANGING else vista.sample_scene(seed)


def seldom_scene(seed: int) -> vista.Scene:
    """Number seed - FIRST_SELDOM of the scenes in which, at some time, the next of SELDOM is to be seen."""
    number = seed - FIRST_SELDOM
    kind, value = SELDOM[number % len(SELDOM)]
    scenes = _looked_through(FIRST_SELDOM, number, SCENES_PER_SELDOM)
    return next(scene for scene in scenes if value in [vars(scene)[kind], *(event.target for event in scene.events)])


def changing_scene(seed: int) -> vista.Scene:
    """Number seed - FIRST_CHANGING of the scenes in which something changes that shows everywhere in the picture."""
    scenes = _looked_through(FIRST_CHANGING, seed - FIRST_CHANGING, SCENES_PER_CHANGING)
    return next(scene for scene in scenes if any(event.kind in CHANGES for event in scene.events))


def _looked_through(first: int, number: int, count: int) -> Iterator[vista.Scene]:
    """The scenes among which clip `number` of a pool looks for its own: no two clips share one."""
    return map(vista.sample_scene, range(first + number * count, first + (number + 1) * count))


def patch_classes(scene: vista.Scene, state: vista.State) -> np.ndarray:
    """[T, H/16, W/16] of numbers below NUM_CLASSES."""
    assert state.patches is not None
    colour_then = state.colour_index[latent_frames(len(state.colour_index))][:, None, None]
    classes = np.where(state.patches == KIND["hero"], _figure(scene.hero) + colour_then, state.patches)
    if scene.second is not None:
        second = _figure(scene.second.hero) + vista.COLOURS.index(scene.second.colour)
        classes = np.where(state.patches == KIND["second"], second, classes)
    return classes.astype(np.uint8)


def patch_motions(state: vista.State) -> np.ndarray:
    """[T, H/16, W/16, 2]: how many pixels, right and down, what a patch shows has come since the latent frame before.
    Of scenery it is what the nearest layer has come: farther ones follow from that, and from what they are."""
    assert state.patches is not None
    chosen = latent_frames(len(state.time))
    still = np.zeros(len(state.time))
    motion = _steps(-state.camera_x, still, chosen)
    for kind, x, y in (("hero", state.hero_x, state.hero_y), ("second", state.second_x, state.second_y)):
        motion = np.where((state.patches == KIND[kind])[..., None], _steps(x, y, chosen), motion)
    return motion.round().clip(-127, 127).astype(np.int8)


def _steps(x: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    places = np.stack([x, y], -1)[chosen]
    return np.nan_to_num(np.diff(places, axis=0, prepend=places[:1]))[:, None, None]


def make_vista_cache(
    folder: Path,
    *,
    num_images: int,
    num_short: int,
    num_long: int,
    num_changing: int = 0,
    num_seldom: int = 0,
    num_unseen: int = 0,
    after: Path | None = None,
    num_workers: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Pools `images` (1 latent frame), `short` (6), `long`, `changing`, `seldom` and `unseen` (21), no scene in two.
    `after`: a folder of such pools; what is learnt from begins where its pools end."""
    from causvid.codecs.vista import VistaCodec

    pools = [
        PoolSpec("images", 1, num_images, clips_per_shard=1024),
        PoolSpec("short", 6, num_short, clips_per_shard=256, first_seed=1_000_000_000),
        PoolSpec("long", 21, num_long, clips_per_shard=64, first_seed=1_500_000_000),
        PoolSpec("changing", 21, num_changing, clips_per_shard=64, first_seed=FIRST_CHANGING),
        PoolSpec("seldom", 21, num_seldom, clips_per_shard=64, first_seed=FIRST_SELDOM),
        PoolSpec("unseen", 21, num_unseen, clips_per_shard=32, first_seed=FIRST_UNSEEN),
    ]
    ends = {} if after is None else ends_of(after)
    learnt = [replace(pool, first_seed=ends.get(pool.name, pool.first_seed)) for pool in pools[:-1]]
    write_cache(
        folder,
        [pool for pool in (*learnt, pools[-1]) if pool.num_clips],
        VistaSource(),
        VistaCodec.load_packaged,
        made_from={"world": "vista, split train", "codec": codec_identity()},
        num_workers=num_workers,
        on_shard=on_shard,
    )


def codec_identity() -> str:
    """Latents of one codec mean nothing to another."""
    from causvid.codecs.vista import VistaCodec

    return f"vista {VistaCodec.load_packaged().identity()}"


def _figure(hero: str) -> int:
    return FIRST_FIGURE + vista.HEROES.index(hero) * len(vista.COLOURS)


def _captions(scene: vista.Scene, seed: int) -> list[str]:
    return [caption(scene, CAPTIONS_PER_CLIP * seed + wording, "train") for wording in range(CAPTIONS_PER_CLIP)]


# ---- what captions say -----------------------------------------------------------------------------------------------

UNSAID = "unsaid"
SHORT_DROP = 0.5  # how often a short caption leaves a slot out
MAX_EVENTS = 2
_EVENTS = {
    "light": vista.LIGHTS,
    "weather": vista.WEATHERS,
    "colour": vista.COLOURS,
    "motion": vista.MOTIONS,
    "camera": vista.CAMERAS,
}
_EVENT_ANSWERS = tuple(f"{kind} {target}" for kind, targets in _EVENTS.items() for target in targets)
# question -> its answers; that the caption does not say is always the first
FACTS: dict[str, tuple[str, ...]] = {
    question: (UNSAID, *answers)
    for question, answers in {
        "biome": vista.BIOMES,
        "light": vista.LIGHTS,
        "weather": vista.WEATHERS,
        "hero": vista.HEROES,
        "colour": vista.COLOURS,
        "motion": vista.MOTIONS,
        "camera": vista.CAMERAS,
        "second hero": vista.HEROES,
        "second colour": vista.COLOURS,
        "second motion": vista.MOTIONS,
        **{f"event {number}": _EVENT_ANSWERS for number in range(1, MAX_EVENTS + 1)},
    }.items()
}


def told_facts(number: int, split: str) -> tuple[str, tuple[int, ...]]:
    """A caption of scene `number` of a split, and the number of the answer to every question of FACTS.

    Every other one to learn from is short, as people write them."""
    scene = vista.sample_scene(number, "val" if split == "paraphrase" else split)
    drop = DROP
    if split == "train" and number % 2:
        scene, drop = replace(scene, second=None, events=()), SHORT_DROP
    text, said = describe(scene, number, split, drop)
    shown = {name: vars(scene)[name] for name in ("biome", "light", "weather", "hero", "colour", "motion", "camera")}
    told = {name: value for name, value in shown.items() if name in said}
    if scene.second is not None and "second" in said:
        told |= {"second hero": scene.second.hero, "second colour": scene.second.colour}
        if "second motion" in said:
            told["second motion"] = scene.second.motion
    told |= {f"event {order}": f"{event.kind} {event.target}" for order, event in enumerate(scene.events, 1)}
    return text, tuple(answers.index(told.get(question, UNSAID)) for question, answers in FACTS.items())
