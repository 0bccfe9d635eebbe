"""What covers every patch of the picture: integer maps for aligning a model's features with the scene."""

import numpy as np

KINDS = ("sky", "cloud", "sun", "moon", "hill", "tree", "building", "ground", "water", "second", "hero", "foreground")
KIND = {name: number for number, name in enumerate(KINDS)}

# A small thing names its patch already when it covers this share of it; scenery needs the largest share.
_SMALL = {KIND["sun"]: 0.15, KIND["moon"]: 0.15, KIND["second"]: 0.18, KIND["hero"]: 0.18, KIND["foreground"]: 0.35}


class Labels:
    """One class map per chosen frame, painted alongside the picture."""

    def __init__(self, frames: np.ndarray, height: int, width: int):
        self.row_of = {int(frame): row for row, frame in enumerate(frames)}
        self.maps = np.zeros((len(frames), height, width), np.uint8)

    def stamp(self, frame: int, rows: slice, cols: slice, where: np.ndarray, kind: int | np.ndarray) -> None:
        row = self.row_of.get(frame)
        if row is not None:
            np.copyto(self.maps[row, rows, cols], np.asarray(kind, np.uint8), where=where)


def patch_classes(maps: np.ndarray, patch: int) -> np.ndarray:
    """The class of each patch, [T, H/p, W/p], from maps [T, H, W]."""
    count, height, width = maps.shape
    tiles = maps.reshape(count, height // patch, patch, width // patch, patch)
    shares = np.stack([(tiles == kind).mean((2, 4)) for kind in range(len(KINDS))], -1)
    winner = shares.argmax(-1)
    for kind, enough in _SMALL.items():
        winner = np.where(shares[..., kind] >= enough, kind, winner)
    return winner.astype(np.int64)


def latent_frames(num_frames: int, compression: int = 4) -> np.ndarray:
    """The pixel frame that stands for each latent frame: 0, then the middle of every group of `compression`."""
    groups = np.arange(1, num_frames, compression)
    return np.concatenate([[0], np.minimum(groups + compression // 2, num_frames - 1)])
