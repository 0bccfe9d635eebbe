"""Every metric answers the named distortions in the right direction; what it cannot see is written down here too."""

import numpy as np
import pytest

from causvid.evaluate import metrics
from causvid.evaluate.distortions import HELD_OUT, NAMES, TRAINED, distort


def disc_clip(num_frames=40, height=64, width=96):
    """A red disc that circles over a textured ground."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    ground = 110 + 40 * np.sin(columns / 5) * np.cos(rows / 6)
    frames = np.repeat(ground[None, :, :, None], num_frames, 0) * np.array([0.7, 1.0, 0.8], np.float32)
    for i in range(num_frames):
        y, x = 32 + 14 * np.sin(i / 7), 48 + 22 * np.cos(i / 7)
        inside = np.clip(10.5 - np.hypot(rows - y, columns - x), 0, 1)[..., None]
        frames[i] += inside * (np.array([220, 40, 40]) - frames[i])
    return np.round(frames).astype(np.uint8)


CLIP = disc_clip()
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def responses():
    flow = metrics.Flow(every=1)
    spoilt = {name: distort(CLIP, name, 0.5, RNG(3))[0] for name in NAMES}
    table = {name: metrics.temporal_metrics(frames, flow) for name, frames in spoilt.items()}
    return {"clean": metrics.temporal_metrics(CLIP, flow)} | table


def test_flow_does_not_remember_pictures_of_another_size():
    flow = metrics.Flow()
    before = flow.warp_error(CLIP[:4])
    flow.warp_error(np.ascontiguousarray(CLIP[:4, :24, :40]))
    assert flow.warp_error(CLIP[:4]) == before


def test_flicker_is_vbenchs_formula():
    still = np.full((3, 4, 4, 3), 100, np.uint8)
    assert metrics.flicker(still) == 1
    still[1] += 51
    assert metrics.flicker(still) == pytest.approx(1 - 51 / 255)


@pytest.mark.parametrize("name", ["flicker", "noise", "shuffle", "jitter"])
def test_restless_pictures_lower_flicker_score_and_smoothness_and_raise_warp_error(responses, name):
    clean, bad = responses["clean"], responses[name]
    assert bad["flicker"] < clean["flicker"]
    assert bad["smoothness"] < clean["smoothness"]
    if name != "jitter":  # the flow follows a whole picture that trembles
        assert bad["warp error"] > 1.5 * clean["warp error"]


@pytest.mark.parametrize("name", ["freeze", "blur"])
def test_standstill_and_blur_look_smooth_so_smoothness_is_never_a_quality(responses, name):
    assert responses[name]["flicker"] >= responses["clean"]["flicker"]
    assert responses[name]["smoothness"] >= responses["clean"]["smoothness"]


def test_noise_passes_for_motion_in_optical_flow(responses):
    assert responses["noise"]["fastest 5 %"] > responses["freeze"]["fastest 5 %"]


def test_sharpness_and_noise_level(responses):
    assert responses["blur"]["sharpness"] < 0.9 * responses["clean"]["sharpness"]
    assert responses["blocks"]["sharpness"] > responses["clean"]["sharpness"]  # edges of blocks pass for detail
    assert responses["noise"]["sharpness"] > 2 * responses["clean"]["sharpness"]
    assert responses["noise"]["noise"] == pytest.approx(16 * 0.67, rel=0.25)  # luma of independent channels
    assert responses["clean"]["noise"] < 2


def test_drift_is_seen_where_it_is(responses):
    assert abs(responses["saturation"]["chroma drift"]) > 0.03 > abs(responses["clean"]["chroma drift"])
    assert abs(responses["exposure"]["brightness drift"]) > 0.08 > abs(responses["clean"]["brightness drift"])
    assert abs(responses["saturation"]["brightness drift"]) < 0.03


def test_cadence_finds_repeated_frames_and_seams():
    dropped, _ = distort(CLIP, "drop", 0.01, RNG(0))
    assert metrics.cadence(dropped, 2) > 0.9 > 0.2 > metrics.cadence(CLIP, 2)
    seams = CLIP.copy()
    seams[np.arange(40) // 4 % 2 == 0] += 6
    assert metrics.cadence(seams, 4) > metrics.cadence(CLIP, 4) + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_severity_follows_strength(name):
    same, none = distort(CLIP, name, 0.0, RNG(0))
    assert (same == CLIP).all() and not none.any()
    changes = []
    for strength in (0.15, 0.9):
        spoilt, severity = distort(CLIP, name, strength, RNG(0))
        assert spoilt.shape == CLIP.shape and spoilt.dtype == np.uint8 and severity.shape == (len(CLIP),)
        assert (spoilt != CLIP).any()
        changes.append((severity.mean(), np.abs(spoilt.astype(int) - CLIP).mean()))
    (mild, little), (strong, much) = changes
    assert mild < strong and little < much


def test_held_out_distortions_are_not_trained_on():
    assert not set(TRAINED) & set(HELD_OUT)
    with pytest.raises(ValueError, match="known: blur"):
        distort(CLIP, "sharpen", 1, RNG(0))


@pytest.mark.parametrize("name", NAMES)
def test_hand_statistics_move_for_every_distortion(name):
    """Distance in units of the change between two clean clips of another phase."""
    clean = np.array([metrics.hand_statistics(disc_clip(40 + k)[k:]) for k in range(4)])
    spoilt = metrics.hand_statistics(distort(CLIP, name, 0.7, RNG(5))[0])
    spread = clean.std(0) + 0.02
    assert np.abs((spoilt - clean.mean(0)) / spread).max() > 4
