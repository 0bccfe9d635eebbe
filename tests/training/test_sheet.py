import numpy as np
import torch
from PIL import Image

from causvid.training.sheet import draw_sheet


def test_frames_lie_side_by_side_and_a_single_one_alone(tmp_path):
    """Frames of one grey each: three of five are shown, from the first to the last."""
    greys = torch.tensor([0.0, 51.0, 102.0, 153.0, 204.0])
    video = (greys / 127.5 - 1).reshape(1, 5, 1, 1, 1).expand(1, 5, 3, 4, 6)
    draw_sheet(tmp_path / "sheet.png", [video, video[:, -1:]], ["", ""], columns=3, scale=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (8 + 16 + 4) + 4, 3 * (12 + 4) + 4, 3)
    draw_sheet(tmp_path / "by-itself.png", [video, video[:, -1:]], ["", ""], columns=3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "by-itself.png")), sheet)  # small ones are doubled
    draw_sheet(tmp_path / "large.png", [torch.zeros(1, 2, 3, 480, 832)], [""])
    assert np.asarray(Image.open(tmp_path / "large.png")).shape == (480 + 16 + 4 + 4, 8 * (832 + 4) + 4, 3)
    told = [[sheet[row * 28 + 4 + 16 + 4, column * 16 + 4 + 6, 0] for column in range(3)] for row in range(2)]
    assert told == [[0, 102, 204], [204, 24, 24]]
