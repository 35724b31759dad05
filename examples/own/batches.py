"""Data of one's own: a function that returns batches (x, y). Here four noisy spirals in eight dimensions."""

import torch


def make(samples: int = 400) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    y = torch.arange(2 * samples) % 4
    t = torch.rand(2 * samples) * 0.8 + 0.2
    angle = 5 * t + y * torch.pi / 2
    x = torch.zeros(2 * samples, 8)
    x[:, 0], x[:, 1] = t * angle.cos(), t * angle.sin()
    x += 0.03 * torch.randn(2 * samples, 8)
    pairs = list(zip(x.split(100), y.split(100), strict=True))
    half = len(pairs) // 2
    return {"train": pairs[:half], "test": pairs[half:]}  # a list of batches alone is a training split
