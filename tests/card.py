"""A GPU that is not there: tensors say "cuda:0", mix with no tensor of the processor, and what leaves them is written down.

`with card() as moved:` every operation on a `Card` runs on the processor with the tensor that it holds. Where a real card would
refuse, so does this one: an operation on tensors of both devices, `numpy()` of what lies there. `moved` lists what a card would
have had to copy or to wait for: ("there" or "back", operation, entries). `card("mps")` is Apple's, which has no float64.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
KINDS, NARROW = ("cuda", "mps"), ("mps",)  # without float64
WIDE = (torch.float64, torch.complex128)
# What torch lacks on Apple's GPUs, some of it up to 2.15 (pytorch issues 141287, 151874, 177370).
LACKING = ("linalg_qr", "linalg_eig", "linalg_svd", "linalg_lstsq", "linalg_householder", "kthvalue")
COPIES = (aten._to_copy.default, aten.copy_.default)
WAITS = (aten._local_scalar_dense.default, aten.equal.default)  # the host needs a number
INDICES = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


@functools.cache
def guard():
    """What torch built for processors lacks, `card_guard.cpp`; once a process."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if torch.cuda.is_available() or compiler is None:
        pytest.skip("a real GPU is here" if compiler else "no C++ compiler (g++, clang++) is here")
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "guard.so"
        command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{home / 'include'}", f"-L{home / 'lib'}"]
        command += [str(Path(__file__).with_name("card_guard.cpp")), "-o", str(made), "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"torch's headers do not compile here: {done.stderr.strip().splitlines()[-1]}")
        ctypes.CDLL(str(made))


class Card(torch.Tensor):
    """A tensor on the card; `inside` is what it is made of."""

    @staticmethod
    def __new__(cls, held, kind):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(kind, 0),
        )

    def __init__(self, held, kind):
        self.inside, self.kind = held, kind
        if kind in NARROW and held.dtype in WIDE:  # in torch's words
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return on_card(func, args, kwargs or {}, [])

    def data_ptr(self):
        return self.inside.data_ptr()

    def untyped_storage(self):
        return self.inside.untyped_storage()

    def numpy(self, **_):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy; use .cpu() first")

    def __getitem__(self, place):
        return super().__getitem__(by_tensors(place))

    def __setitem__(self, place, value):
        super().__setitem__(by_tensors(place), value)

    def __repr__(self, **_):
        return f"Card({self.inside})"


def by_tensors(place):
    """Lists of places as tensors, which torch makes of them where no mode sees it."""
    if isinstance(place, tuple):
        return tuple(map(by_tensors, place))
    return torch.tensor(list(place)) if isinstance(place, list | range) else place


def wrapped(x, kind):
    """On the card; forward mode's zeros without memory, which only torch's own dispatch reads, with memory."""
    if isinstance(x, Card):
        return x
    return Card(torch.zeros(x.shape, dtype=x.dtype) if x._is_zerotensor() else x, kind)


def held(x):
    return x.inside if isinstance(x, Card) else torch.device("cpu") if isinstance(x, torch.device) else x


def on_card(func, args, kwargs, moved):
    leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    cards = [x for x in leaves if isinstance(x, Card)]
    others = [x for x in leaves if not isinstance(x, Card)]
    wanted = kwargs.get("device")
    there = bool(cards) if wanted is None else torch.device(wanted).type in KINDS
    kind = cards[0].kind if cards else torch.device(wanted).type if there else ""
    small = func not in (aten.mm.default, aten.cat.default, aten.stack.default) and not any(x.ndim for x in others)
    if cards and others and func not in COPIES and func not in INDICES and not small:
        raise RuntimeError(f"{func} mixes devices: {[(str(x.device), tuple(x.shape)) for x in leaves]}")
    if kind in NARROW and any(name in str(func) for name in LACKING):
        raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device.")
    if func in WAITS and cards:
        moved.append(("back", str(func), 1))
    if func in COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        target = isinstance(args[0], Card) if func is aten.copy_.default else there
        if isinstance(source, Card) != target:
            moved.append(("there" if target else "back", str(func), source.numel()))
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if func in COPIES[1:] and not isinstance(args[0], Card):
        return args[0]
    made = tree_map(lambda x: wrapped(x, kind) if isinstance(x, torch.Tensor) and there else x, out)
    return return_and_correct_aliasing(func, args, kwargs, made) if cards else made


class Runs(TorchDispatchMode):
    def __init__(self, moved):
        super().__init__()
        self.moved = moved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return on_card(func, args, kwargs or {}, self.moved)


@contextmanager
def card(memory=8 << 30):
    """torch with one GPU of so many bytes; what crosses its border."""
    if set(KINDS) == {"cuda", "mps"}:  # a backend that has been registered has its own
        guard()
    moved = []
    with ExitStack() as stack:
        for name, value in {
            "_lazy_init": lambda: None, "synchronize": lambda *_: None, "mem_get_info": lambda *_: (memory, memory),
            "get_device_capability": lambda *_: (9, 0), "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0,
        }.items():  # fmt: skip
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.accelerator, "synchronize", lambda *_: None))
        for name, value in {"recommended_max_memory": memory, "current_allocated_memory": 0}.items():
            stack.enter_context(mock.patch.object(torch.mps, name, lambda value=value: value))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        before = (
            torch.__future__.get_overwrite_module_params_on_conversion()
        )  # else a module keeps its own tensor objects
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(Runs(moved))
        yield moved
