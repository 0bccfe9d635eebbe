"""A model that paints what its prompt asks for: Vista's renderer under the names of a text encoder, a student, a codec.

Everything between them is real, so what a judge reads from the page's canvas is what the studio made of a prompt, and
no network's skill is in it. Light, weather and colour may change; the scene is one of a red car in a city."""

from dataclasses import replace

import torch

from causvid.bundle import Model, ModelConfig, TeacherSampling
from causvid.cache import CachePolicy
from causvid.models.dit import TextMemory, VideoDiT
from causvid.pixels import video_from_frames
from causvid.rollout import RolloutConfig
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.worlds.vista import COLOURS, LIGHTS, WEATHERS, Scene, parse_caption, render, vocabulary
from tiny_models import TINY

SCENE = Scene(5, biome="city", hero="car", colour="red", motion="drives", camera="follow")
CHOICES = {"light": LIGHTS, "weather": WEATHERS, "colour": COLOURS}


class Wishes(VistaText):
    """A prompt as the numbers of what it asks for, in its first row."""

    def __init__(self) -> None:
        super().__init__(VistaTextConfig(width=8, ffn_width=8, num_layers=1, num_heads=1, length=64), vocabulary())

    def forward(self, prompts):
        text = torch.zeros(len(prompts), self.length, self.width)
        for rows, prompt in zip(text, prompts):
            asked = parse_caption(prompt).attributes
            for place, (name, values) in enumerate(CHOICES.items()):
                rows[0, place] = values.index(asked.get(name, getattr(SCENE, name)))
        return text


class Student(VideoDiT):
    """Its x0 is what the prompt asks for, everywhere, at every level of noise."""

    def project_text(self, text):
        return TextMemory((text[:, :, None],), (text[:, :, None],))

    def forward(self, x_t, sigma, text, *, past=None, **_):
        wishes = text.keys[0][:, 0, 0, : x_t.shape[2]]
        level = sigma[:, :, None, None, None]
        return torch.where(level > 0, (x_t - wishes[:, None, :, None, None]) / level.clamp(min=1e-6), 0.0)


class Painting:
    """Latents to pictures, each at the time that the stream has come to."""

    def __init__(self, num_frames=0):
        self.num_frames = num_frames

    def __call__(self, latents):
        frames = []
        for wishes in latents[0, :, : len(CHOICES), 0, 0].round().int().tolist():
            chosen = {name: values[i] for (name, values), i in zip(CHOICES.items(), wishes)}
            count = 4 if self.num_frames else 1
            frames.append(render(replace(SCENE, **chosen), count, start_frame=self.num_frames)[0])
            self.num_frames += count
        return torch.cat([video_from_frames(part) for part in frames], 1)

    def save(self):
        return [self.num_frames]

    def load(self, state):
        (self.num_frames,) = state


class Canvas:
    latent_channels, space_factor, time_factor, dtype = 4, 8, 4, torch.float32

    def decode_stream(self):
        return Painting()

    def decode(self, latents):
        return self.decode_stream()(latents)

    def encode_stream(self):
        raise NotImplementedError("what is painted was never photographed")

    def encode(self, video):
        raise NotImplementedError("what is painted was never photographed")


def painter() -> Model:
    """Chunks of a second at Vista's size, in two steps."""
    cfg = ModelConfig(
        name="painter",
        fps=12,
        height=64,
        width=112,
        num_latents=6,
        codec="vista",
        text="vista",
        rollout=RolloutConfig(sigmas=(1.0, 0.5, 0.0), chunk=3, policy=CachePolicy(window=6)),
        teacher=TeacherSampling(steps=2, guidance=1.0, shift=1.0),
    )
    return Model(cfg, Canvas(), Wishes().eval().requires_grad_(False), student_source=lambda: Student(TINY))
