"""A program's product as one CUDA graph: small models wait for kernels to be launched, a graph launches all of them at once.

A graph reads and writes memory of its own: the vector is copied in and the product out, two passes over what is small then. It
is held to products and timed like the program itself (`autotune`), and dropped where it is not faster. What torch refuses to
capture (an operation that waits for the device, say) leaves the program as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LAUNCH = 1e-5  # seconds from one kernel to the next at most, where the device waits for the host
SHARE = 0.25  # of a product's time, below which launches are no matter
WARM = 2  # runs before the capture: libraries take their memory then


class Captured:
    """`run(v, w)`, which writes w (m,), by one launch."""

    def __init__(self, run: Callable[[torch.Tensor, torch.Tensor], None], v: torch.Tensor, m: int) -> None:
        self.v, self.w = torch.zeros_like(v), v.new_empty(m)  # a graph that did not read its vector would give 0
        self.replay = captured(lambda: run(self.v, self.w), v.device)

    @property
    def bytes(self) -> int:
        """Of its vectors."""
        return sum(x.numel() * x.element_size() for x in (self.v, self.w))

    def add(self, v: torch.Tensor, w: torch.Tensor, new: bool) -> None:
        """w += the product with v, or w = the product if `new`."""
        self.v.copy_(v)
        self.replay()
        w.copy_(self.w) if new else w.add_(self.w)


def captured(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What launches again the kernels that `work` launches on this device, on the same memory."""
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # torch's own stream is one of the device that was current when it captured first; other threads may use the device
    with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
        work()
    return graph.replay
