"""What can be said about a clip without any trained weights: uint8 frames [F, H, W, 3] in, a number out.

None of these is a quality. Blur and standstill improve every smoothness number, noise looks like motion, so each value
is read next to the same value of the ground truth, and scored on both sides of it (`formulas.two_sided`).
"""

from typing import Any

import numpy as np

from causvid.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def flicker(frames: np.ndarray) -> float:
    """VBench's temporal flickering: 1 is a still picture."""
    return float((255 - _steps(frames).mean()) / 255) if len(frames) > 1 else 1.0


def _steps(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame to the one before, [F-1], in grey levels."""
    return np.abs(frames[1:].astype(np.int16) - frames[:-1]).mean((1, 2, 3))


def cadence(frames: np.ndarray, period: int) -> float:
    """How unevenly change is spread over the phases of a period: 0 even, period-1 when all of it falls on one phase.

    Period 2 finds repeated frames, the codec's period (4) finds seams between latent frames."""
    steps = _steps(frames)
    if len(steps) < 2 * period or steps.mean() < 1e-9:
        return 0.0
    phases = np.array([steps[phase::period].mean() for phase in range(period)])
    return float((phases.max() - phases.mean()) / phases.mean())


def sharpness(frames: np.ndarray) -> float:
    """Mean absolute Laplacian of the luma, in grey levels."""
    y = frames @ LUMA
    lap = 4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]
    return float(np.abs(lap).mean())


def chroma(frames: np.ndarray) -> float:
    """Mean distance of the largest to the smallest channel, 0 to 1."""
    return float((frames.max(-1).astype(np.float32) - frames.min(-1)).mean() / 255)


def brightness(frames: np.ndarray) -> float:
    return float((frames @ LUMA).mean() / 255)


def contrast(frames: np.ndarray) -> float:
    """Spread of the luma inside a frame, averaged over frames, 0 to 1."""
    return float((frames @ LUMA).std((1, 2)).mean() / 255)


def noise_level(frames: np.ndarray) -> float:
    """Standard deviation of pixel noise in grey levels, from a median of differences that cancel edges (Immerkaer)."""
    y = frames @ LUMA
    core = (
        4 * y[:, 1:-1, 1:-1]
        - 2 * (y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:])
        + (y[:, :-2, :-2] + y[:, :-2, 2:] + y[:, 2:, :-2] + y[:, 2:, 2:])
    )
    return float(np.median(np.abs(core)) / 0.6745 / 6)


def drift(values: np.ndarray, share: float = 0.15) -> float:
    """Mean of the last `share` of a curve minus the mean of its first `share`."""
    count = max(1, round(share * len(values)))
    return float(np.mean(values[-count:]) - np.mean(values[:count]))


class Flow:
    """Dense optical flow (DIS). One object serves many clips; it needs OpenCV, from the extra [eval].

    Only every `every`-th pair (or triple) of a clip is looked at: the next ones tell nearly the same."""

    def __init__(self, every: int = 3) -> None:
        self.every = every
        self._cv2 = _opencv()

    def between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Displacement [H, W, 2] in pixels that carries frame a to frame b."""
        grey = self._cv2.COLOR_RGB2GRAY
        # a new one each time, which costs nothing: what it has seen in another size changes what it says
        dis = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return dis.calc(self._cv2.cvtColor(a, grey), self._cv2.cvtColor(b, grey), None)

    def pull(self, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        """Look `image` up where the flow points."""
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
        where = np.stack([columns + flow[..., 0], rows + flow[..., 1]], -1)
        return self._cv2.remap(image, where, None, self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE)

    def warp_error(self, frames: np.ndarray) -> float:
        """Mean squared difference of a frame and its successor warped back onto it, where both flows agree."""
        errors = []
        for a, b in zip(frames[: -1 : self.every], frames[1 :: self.every]):
            forth, back = self.between(a, b), self.between(b, a)
            returned = self.pull(back, forth)
            gap = ((forth + returned) ** 2).sum(-1)
            valid = gap < 0.01 * ((forth**2).sum(-1) + (returned**2).sum(-1)) + 0.5
            difference = (self.pull(b, forth).astype(np.float32) - a) / 255
            errors.append((difference**2)[valid].mean() if valid.any() else 1.0)
        return float(np.mean(errors))

    def smoothness(self, frames: np.ndarray) -> float:
        """VBench's motion smoothness with DIS for the interpolation: odd frames rebuilt from their even neighbours."""
        gaps = []
        step = 2 * self.every
        for a, truth, b in zip(frames[0:-2:step], frames[1:-1:step], frames[2::step]):
            forth, back = self.between(a, b), self.between(b, a)
            middle = (self.pull(a, back / 2).astype(np.float32) + self.pull(b, forth / 2)) / 2
            gaps.append(np.abs(np.round(middle) - truth).mean())
        return float((255 - np.mean(gaps)) / 255) if gaps else 1.0

    def fastest(self, frames: np.ndarray, share: float = 0.05) -> float:
        """Mean length of the largest `share` of flow vectors, pixels per frame. Noise inflates it threefold."""
        tops = []
        for a, b in zip(frames[: -1 : self.every], frames[1 :: self.every]):
            length = np.linalg.norm(self.between(a, b), axis=-1).ravel()
            tops.append(np.sort(length)[-max(1, int(share * length.size)) :].mean())
        return float(np.mean(tops)) if tops else 0.0


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError("optical flow needs OpenCV: install it with pip install 'causvid[eval]'") from None
    cv2.setNumThreads(1)
    return cv2


def looks(frames: np.ndarray) -> np.ndarray:
    """Sharpness (in full scale), contrast, chroma and brightness of each quarter of a clip, [4, 4]."""
    quarters = np.array_split(frames, 4)
    return np.array([[sharpness(q) / 255, contrast(q), chroma(q), brightness(q)] for q in quarters])


def temporal_metrics(frames: np.ndarray, flow: Flow | None = None) -> dict[str, float]:
    """All of the above for one clip; the flow ones only if `flow` is given."""
    values = {
        "flicker": flicker(frames),
        "cadence 2": cadence(frames, 2),
        "cadence 4": cadence(frames, 4),
        "sharpness": sharpness(frames),
        "noise": noise_level(frames),
        "chroma": chroma(frames),
        "brightness": brightness(frames),
        "chroma drift": drift(np.array([chroma(f[None]) for f in frames])),
        "brightness drift": drift(np.array([brightness(f[None]) for f in frames])),
    }
    if flow is not None:
        values |= {
            "warp error": flow.warp_error(frames),
            "smoothness": flow.smoothness(frames),
            "fastest 5 %": flow.fastest(frames),
        }
    return values


def hand_statistics(frames: np.ndarray) -> np.ndarray:
    """Sixteen numbers per clip, means and slopes in time: the cheapest universal alarm, for MMD and FD."""
    parts = np.array_split(frames, 4)
    names = (brightness, chroma, contrast, sharpness, noise_level)
    levels = np.array([[name(part) for name in names] for part in parts])  # [4, 5]
    levels[:, 3:] = np.log(levels[:, 3:] + 0.1)
    steps = _steps(frames)
    jerk = np.abs(np.diff(frames.astype(np.int16), n=2, axis=0)).mean((1, 2, 3))
    mean_level = (frames @ LUMA).mean((1, 2))
    motion = [
        np.log(steps.mean() + 0.01),
        np.log(jerk.mean() + 0.01),
        np.log(np.abs(np.diff(mean_level, n=2)).mean() + 1e-3),
    ]
    cadences = [cadence(frames, 2), cadence(frames, 4), np.log(np.median(steps) + 0.01)]
    return np.concatenate([levels.mean(0), levels[-1] - levels[0], motion, cadences])
