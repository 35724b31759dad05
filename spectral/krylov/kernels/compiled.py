"""What kernels have in common: they are compiled for a device when first asked for, and tried before they are used.

Whatever fails there (no cupy, its compiler, the driver, numbers that differ), torch or numpy does the work; `described` says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from spectral import arrays
from spectral.failures import first_line

HERE = Path(__file__).parent
Made = TypeVar("Made", bound="Kernels")


class Kernels(ABC):
    """The kernels of one source on one device, each for float32 and float64."""

    source: ClassVar[Path]
    names: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[dict[torch.device, Any]]  # by device: these, or why there are none

    def __init_subclass__(cls) -> None:
        cls.known = {}

    def __init__(self, device: torch.device) -> None:
        import cupy

        self.device, self.name = device, f"cupy {cupy.__version__}"
        with arrays.one_stream(device):
            module = cupy.RawModule(
                code=self.source.read_text(encoding="utf-8"), options=("--std=c++17", *self.options)
            )
            names = [f"{name}_{arrays.dtype_name(dtype)}" for name in self.names for dtype in arrays.NUMPY]
            self.kernels = {name: module.get_function(name) for name in names}

    @abstractmethod
    def hold(self) -> None:
        """ValueError unless the kernels give what they stand for."""

    @classmethod
    def of(cls: type[Made], device: torch.device) -> Made | None:
        """Those of this device, None where there are none."""
        if device not in cls.known:
            try:
                made = cls(device)
                made.hold()
                cls.known[device] = made
            # whatever cupy, its compiler and the driver raise: the other path is always there
            except Exception as failure:
                cls.known[device] = first_line(failure)
        known = cls.known[device]
        return known if isinstance(known, cls) else None

    @classmethod
    def described(cls, device: torch.device) -> str | None:
        """What is used on this device, None where nothing has been asked for."""
        made = cls.known.get(device)
        return made if made is None else made.name if isinstance(made, cls) else f"torch, since {made}"
