"""Small random networks that every test may use: the same classes as everywhere, at a size that takes milliseconds."""

from dataclasses import dataclass, replace

import torch

from causvid.bundle import Model, ModelConfig, TeacherSampling
from causvid.cache import CachePolicy
from causvid.flow import sigma_grid
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.noise import seeded
from causvid.rollout import RolloutConfig
from causvid.text import Understood
from causvid.view_noise import ViewNoise

TINY = VideoDiTConfig(
    width=48,
    ffn_width=96,
    num_heads=2,
    num_layers=3,
    in_channels=4,
    out_channels=4,
    patch=2,
    freq_width=32,
    text_width=8,
    text_length=5,
    eps=1e-6,
    precision="islands",
)


def random_dit(cfg: VideoDiTConfig = TINY, seed: int = 0) -> VideoDiT:
    """A network whose every parameter matters (the real initialisation ends in a head of zeros), with outputs up to
    about 2 at most, as latents have."""
    rng = torch.Generator().manual_seed(seed)
    model = VideoDiT(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            is_matrix = parameter.ndim in (2, 5)
            parameter.normal_(std=parameter[0].numel() ** -0.5 if is_matrix else 0.3, generator=rng)
        model.head.head.weight.mul_(0.5)
    return model.eval().requires_grad_(False)


class BoxCodec:
    """A codec with an answer on paper: a latent is the mean colour of a 4x4 box, the last pixel frame of its group.
    Decoding repeats it over the box and the group. Streams need no history but whether they have begun."""

    latent_channels, space_factor, time_factor, dtype = 4, 4, 4, torch.float32

    def encode(self, video):
        return self.encode_stream()(video)

    def decode(self, latents):
        return self.decode_stream()(latents)

    def encode_stream(self):
        return BoxStream(self._encode)

    def decode_stream(self):
        return BoxStream(self._decode)

    def _encode(self, video, begun):
        last = video[:, 3::4] if begun else torch.cat([video[:, :1], video[:, 4::4]], 1)
        boxes = torch.nn.functional.avg_pool2d(last.flatten(0, 1), 4).unflatten(0, last.shape[:2])
        return torch.cat([boxes, boxes.mean(2, keepdim=True)], 2)

    def _decode(self, latents, begun):
        video = latents[:, :, :3].repeat_interleave(4, 1).repeat_interleave(4, 3).repeat_interleave(4, 4)
        return video if begun else video[:, 3:]


class BoxStream:
    def __init__(self, function):
        self.function, self.begun = function, False

    def __call__(self, piece):
        out = self.function(piece, self.begun)
        self.begun = True
        return out

    def save(self):
        return [self.begun]

    def load(self, state):
        (self.begun,) = state


class HashText:
    """Every word has a row of noise of its own, so that different prompts differ and the same prompt never does."""

    width, length = 8, 5

    def __call__(self, prompts):
        text = torch.zeros(len(prompts), self.length, self.width)
        for rows, prompt in zip(text, prompts):
            for row, word in zip(rows, prompt.split()):
                row.copy_(torch.randn(self.width, generator=seeded(*word.encode())))
        return text

    def understand(self, prompt):
        return Understood(prompt)


@dataclass(frozen=True)
class HashCourse:
    """Every prompt has a speed of its own; of pictures that come from elsewhere nothing is known."""

    speed: float | None = None
    place: float = 0.0

    def after(self, prompt):
        return replace(self, speed=float(torch.randn((), generator=seeded(*prompt.encode()))))

    def unknown(self):
        return replace(self, speed=None)

    @property
    def is_known(self):
        return self.speed is not None

    def advance(self, num_frames):
        travel = self.place + (self.speed or 0.0) * torch.arange(num_frames, dtype=torch.float64)
        return travel, replace(self, place=self.place + (self.speed or 0.0) * num_frames)


class MovingText(HashText):
    """Tells how the view moves, and names a tint where none is named: the one before, or the seed's."""

    def course(self, seed, height):
        return HashCourse(place=float(seed % 7))

    def settle(self, parts, seed, before):
        tint = before.split()[0] if before.startswith("tint") else f"tint{seed % 3}"
        return tuple(part if part.startswith("tint") else f"{tint} {part}" for part in parts)


def moving_model(**rollout) -> Model:
    """The same, of networks that are told how the view moves, with noise that goes along, words that are settled, and
    pictures that go on between latent frames."""
    model = random_model(**rollout)
    cfg = replace(model.cfg, view_noise=ViewNoise(0.7, parallax=(0.3, 1.0), pixels=4), steady=0.8)
    dit = replace(TINY, parallax=(0.3, 1.0))
    return Model(cfg, BoxCodec(), MovingText(), lambda: random_dit(dit), lambda: random_dit(dit, seed=1))


def random_model(**rollout) -> Model:
    """A whole model of random weights: 24x40 pixels, chunks of 3, four steps."""
    settings = dict(sigmas=tuple(sigma_grid(4, 5.0)), shift=5.0, chunk=3, policy=CachePolicy(window=12))
    cfg = ModelConfig(
        name="random",
        fps=12,
        height=24,
        width=40,
        num_latents=6,
        codec="vista",
        text="vista",
        rollout=RolloutConfig(**settings | rollout),
        teacher=TeacherSampling(steps=5, guidance=2.0, shift=5.0),
    )
    return Model(cfg, BoxCodec(), HashText(), random_dit, lambda: random_dit(seed=1))
