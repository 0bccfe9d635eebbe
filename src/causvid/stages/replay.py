"""Recent videos of the student, for a critic that learns more often than new ones are made."""

import torch
from torch import Tensor, nn

from causvid.shapes import Latents, Text


class Replay(nn.Module):
    """The last `capacity` videos with their text and how their views move, the same on every rank. A module, so that
    checkpoints hold it."""

    videos: Tensor
    texts: Tensor
    ways: Tensor
    count: Tensor  # of all that were ever put in

    def __init__(self, capacity: int, clip: tuple[int, ...], text: tuple[int, int], device: torch.device) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("videos", torch.zeros(capacity, *clip, device=device))
        self.register_buffer("texts", torch.zeros(capacity, *text, device=device))
        self.register_buffer("ways", torch.full((capacity, clip[0]), float("nan"), device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        return min(int(self.count), self.capacity)

    def put(self, videos: Latents, texts: Text, ways: Tensor) -> None:
        place = (int(self.count) + torch.arange(len(videos))) % self.capacity
        self.videos[place], self.texts[place] = videos.to(self.videos), texts.to(self.texts)
        self.ways[place] = ways.to(self.ways)
        self.count += len(videos)

    def draw(self, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`num` different ones while there are so many."""
        order = torch.cat([torch.randperm(self.size, generator=rng) for _ in range(-(-num // self.size))])[:num]
        return self.videos[order], self.texts[order], self.ways[order]
