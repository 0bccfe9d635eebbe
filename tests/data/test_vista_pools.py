"""Vista's pools: what a clip shows depends on its seed alone, and its caption and truth belong to it."""

import numpy as np
import pytest
from safetensors import safe_open

from causvid.data.vista import (
    CHANGES,
    FIRST_CHANGING,
    FIRST_SELDOM,
    FIRST_UNSEEN,
    NUM_CLASSES,
    SCENES_PER_CHANGING,
    SELDOM,
    VIEWS_PER_SCENE,
    VistaSource,
    changing_scene,
    make_vista_cache,
    patch_classes,
    patch_motions,
    seldom_scene,
)
from causvid.errors import UserError
from causvid.worlds import vista
from causvid.worlds.vista.sampling import held_out
from causvid.worlds.vista.truth import KIND, KINDS


@pytest.mark.parametrize("num_latents", [1, 2])
def test_a_clip_is_a_function_of_its_seed(num_latents):
    source = VistaSource()
    together = source(range(3, 8), num_latents)
    for seed, clip in zip(range(3, 8), together):
        (alone,) = source([seed], num_latents)
        assert np.array_equal(alone.frames, clip.frames) and np.array_equal(alone.truth, clip.truth)
        assert alone.captions == clip.captions
        assert clip.frames.shape == (1 + 4 * (num_latents - 1), 64, 112, 3) and clip.truth.shape == (num_latents, 4, 7)


def test_pictures_of_a_scene_differ_in_time_only():
    views = VistaSource()(range(VIEWS_PER_SCENE), 1)
    assert len({view.frames.tobytes() for view in views}) == VIEWS_PER_SCENE
    assert len({len(view.captions) for view in views}) == 1
    scenery = np.stack([view.frames[0, :8] for view in views]).astype(int)
    other = VistaSource()([VIEWS_PER_SCENE * 5], 1)[0].frames[0, :8].astype(int)
    assert np.abs(scenery - scenery[0]).mean() < np.abs(scenery - other).mean()


def test_only_long_clips_have_events():
    eventful = next(seed for seed in range(100) if vista.sample_scene(seed).events)
    told = VistaSource(event_frames=2)([eventful], 2)[0]
    quiet = VistaSource(event_frames=3)([eventful], 2)[0]
    count = [np.mean([len(caption.split()) for caption in clip.captions]) for clip in (told, quiet)]
    assert count[0] > count[1]


def test_in_every_clip_of_the_changing_pool_something_changes():
    scenes = [changing_scene(seed) for seed in range(FIRST_CHANGING, FIRST_CHANGING + 200)]
    kinds = [{event.kind for event in scene.events} for scene in scenes]
    assert all(found & set(CHANGES) for found in kinds)
    assert all(any(kind in found for found in kinds) for kind in CHANGES)
    assert len(set(scenes)) == len(scenes) and not any(held_out(scene) for scene in scenes)
    last = 2**31 - 1  # the highest seed that the world has
    assert changing_scene(FIRST_CHANGING + (last - FIRST_CHANGING) // SCENES_PER_CHANGING - 1).events


def test_clips_of_the_changing_pool_show_those_scenes():
    seed = FIRST_CHANGING + 3
    (clip,) = VistaSource(event_frames=2)([seed], 2)
    frames, _ = vista.render(changing_scene(seed), 5, 64, 112, 12)
    assert np.array_equal(clip.frames, frames)


def test_in_every_clip_of_the_seldom_pool_its_turn_comes():
    scenes = [seldom_scene(seed) for seed in range(FIRST_SELDOM, FIRST_SELDOM + 10 * len(SELDOM))]
    for scene, (kind, value) in zip(scenes, 10 * SELDOM):
        assert value in [getattr(scene, kind), *(event.target for event in scene.events)]
    assert len(set(scenes)) == len(scenes) and not any(held_out(scene) for scene in scenes)
    (clip,) = VistaSource(event_frames=2)([FIRST_SELDOM + 1], 2)
    assert np.array_equal(clip.frames, vista.render(scenes[1], 5, 64, 112, 12)[0])


def test_pools_after_others_hold_none_of_their_clips_but_the_same_that_nothing_learns_from(tmp_path):
    def seeds(folder, pool):
        with safe_open(folder / pool / "shard-00000.safetensors", framework="pt") as shard:
            return shard.get_tensor("seeds").tolist()

    counts = {"num_images": 3, "num_short": 1, "num_long": 0, "num_unseen": 1}
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder, after in ((first, None), (second, first), (third, second)):
        make_vista_cache(folder, **counts, after=after, num_workers=0)
    assert [seeds(folder, "images") for folder in (first, second, third)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len({seeds(folder, "short")[0] for folder in (first, second, third)}) == 3
    assert seeds(first, "unseen") == seeds(third, "unseen") == [FIRST_UNSEEN]
    with pytest.raises(UserError, match="holds no pools"):
        make_vista_cache(tmp_path / "fourth", **counts, after=tmp_path, num_workers=0)


def test_classes_tell_who_it_is():
    seed = next(s for s in range(200) if vista.sample_scene(s).second and not vista.sample_scene(s).events)
    scene = vista.sample_scene(seed)
    _, state = vista.render(scene, 9, patch=16)
    classes = patch_classes(scene, state)
    assert classes.shape == (3, 4, 7) and classes.max() < NUM_CLASSES
    who = len(KINDS) + 8 * vista.HEROES.index(scene.hero) + vista.COLOURS.index(scene.colour)
    second = len(KINDS) + 8 * vista.HEROES.index(scene.second.hero) + vista.COLOURS.index(scene.second.colour)
    assert ((classes == who) == (state.patches == KIND["hero"])).all() and (classes == who).any()
    assert ((classes == second) == (state.patches == KIND["second"])).all()
    plain = classes < len(KINDS)
    assert (classes[plain] == state.patches[plain]).all()


def test_motions_are_those_of_the_picture_itself():
    """Scenery comes as many pixels as the picture of the nearest layer does, the hero as many as its middle."""
    scene = vista.Scene(7, "forest", "day", "clear", "bird", "red", "circles", "pan left")
    frames, state = vista.render(scene, 81, patch=16)
    motion = patch_motions(state)
    assert motion.shape == (21, 4, 7, 2) and motion.dtype == np.int8 and not motion[0].any()
    scenery = state.patches != KIND["hero"]
    # 18 units a second, a unit is a pixel, three latent frames a second
    assert (motion[2:][scenery[2:]] == [6, 0]).all()
    near = frames[:, -20:].astype(int)  # the nearest layer, and nothing else
    errors = {dx: np.abs(near[11] - np.roll(near[7], dx, 1))[:, 20:-20].mean() for dx in range(-9, 10)}
    assert min(errors, key=lambda dx: errors[dx]) == 6

    hero = np.stack([state.hero_x, state.hero_y], -1)
    moves = [(hero[4 * k - 1] - hero[max(4 * k - 5, 0)]).round() for k in range(1, 21)]
    there = [(k, motion[k][~scenery[k]]) for k in range(1, 21) if (~scenery[k]).any()]
    assert len(there) > 10 and all((found == moves[k - 1]).all() for k, found in there)
    assert len({tuple(move) for move in moves}) > 5
