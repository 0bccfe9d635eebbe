"""A judge that knows the truth, and instruments of random weights for everything that is only plumbing."""

import numpy as np
import pytest
import torch

from causvid.evaluate.judge_data import STACK, TIMED, VALUES
from causvid.evaluate.judges import Judge, Reading
from causvid.evaluate.metrics import Flow
from causvid.evaluate.quality import QualityJudge
from causvid.evaluate.scoring import Instruments
from causvid.worlds.vista.motion import walk
from causvid.worlds.vista.tracks import Tracks


def _true_reading(scene, num_frames=81):
    """What a judge without error would say of the clip of this scene: nothing is rendered."""
    t = np.arange(num_frames) / 12
    tracks = Tracks(scene, t)
    middle = np.arange(1, num_frames - 1, STACK)
    second, second_colour = ("none", "red") if scene.second is None else scene.second[:2]
    constant = {"biome": scene.biome, "hero": scene.hero, "second": second, "second colour": second_colour}
    index = {name: np.full(len(middle), VALUES[name].index(value)) for name, value in constant.items()}
    index |= {name: tracks.index(name, VALUES[name])[middle] for name in TIMED}
    log_probs = {}
    for name, values in VALUES.items():
        p = np.full((len(middle), len(values)), 1e-4)
        p[np.arange(len(middle)), index[name]] = 1
        log_probs[name] = np.log(p / p.sum(1, keepdims=True))
    path = walk(scene.hero, tracks.motion_weights(), tracks, 112.0, "hero")
    return Reading(
        log_probs=log_probs,
        place=np.stack([path.x, path.y], 1)[middle] / 64,
        visible=np.ones(len(middle)),
        speed=np.gradient(tracks.camera)[middle] / 64,
        features=np.ones((len(middle), 4)),
    )


@pytest.fixture(scope="session")
def true_reading():
    return _true_reading


@pytest.fixture(scope="session")
def untrained():
    """Instruments with random weights."""
    torch.manual_seed(0)
    judge, quality = Judge("report").eval(), QualityJudge().eval()
    return Instruments(judge, quality, Flow(), Judge("select").eval(), {"judge_report": "random"})
