"""Arrays of numpy, cupy and torch, exchanged without copies where one memory serves both; devices, dtypes and free memory."""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
TILE = 1 << 14  # rows of a block transposed at a time: they stay in cache, and are enough for several threads
SQUARES = 1e-140, 1e140  # sizes whose squares, and sums of so many, float64 holds
LONGEST = 1 << 30  # entries of one call: the libraries of GPUs count in 32 bits
HEAVY = 1 << 26  # bytes of a vector, beyond which its memory is worth some care
_WAITING: deque[np.ndarray] = deque(maxlen=1)  # memory of a product, for the next one
_SCARCE: list[None] = []  # those who want none to wait


def is_cupy(array: Any) -> bool:
    """True for a cupy array, without importing cupy."""
    return isinstance(array, getattr(sys.modules.get("cupy"), "ndarray", ()))


def is_array(array: Any) -> bool:
    """True for what `to_torch` takes: a torch tensor, a numpy array or a cupy array."""
    return isinstance(array, torch.Tensor | np.ndarray) or is_cupy(array)


def on_cuda(device: torch.device) -> bool:
    """True where cupy can see the memory of `device`."""
    return device.type == "cuda"


def cupy_device(owner: Any) -> torch.device:
    """Where a cupy array or matrix lies, as a torch device; cupy's current device for what does not say."""
    device = getattr(owner, "device", None)
    return torch.device("cuda", (sys.modules["cupy"].cuda.Device() if device is None else device).id)


@contextmanager
def one_stream(device: torch.device) -> Iterator[bool]:
    """cupy works on torch's current stream of `device` inside; yields whether it already did.

    At both borders one library's stream waits for the other's, on the device: the host goes on. Each allocator hands
    memory out again in the order of the stream that it was made on. Whatever is read inside is therefore safe to free
    afterwards; a new array that leaves the block is safe only on the stream that made it, so that callers copy it.
    """
    cupy = sys.modules["cupy"]
    with cupy.cuda.Device(device.index), torch.cuda.device(device):  # torch exports from its current device alone
        pointer = torch.cuda.current_stream(device).cuda_stream
        theirs = cupy.cuda.get_current_stream()
        if theirs.ptr == pointer:  # both null unless the user has chosen a stream
            yield True
            return
        ours = cupy.cuda.ExternalStream(pointer)
        ours.wait_event(theirs.record())
        try:
            with ours:
                yield False
        finally:
            theirs.wait_event(ours.record())


@cache
def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 can lie there; Apple's GPUs (mps) and some of Intel's have none."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def float64_device(device: torch.device) -> torch.device:
    """Where float64 numbers of what lies on `device` are: there, or on the processor."""
    return device if has_float64(device) else torch.device("cpu")


def near(x: torch.Tensor) -> torch.Tensor:
    """x where float64 is: itself, or a copy on the processor."""
    return x.to(float64_device(x.device))


def double(x: torch.Tensor) -> torch.Tensor:
    """x in float64, where it lies or, if there is none there, on the processor.

    >>> double(torch.ones(2))
    tensor([1., 1.], dtype=torch.float64)
    """
    return near(x).double()


def double_zeros(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Zeros in float64 on `device` or, if there is none there, on the processor.

    >>> double_zeros((2,), torch.device("cpu"))
    tensor([0., 0.], dtype=torch.float64)
    """
    return torch.zeros(shape, dtype=torch.float64, device=float64_device(device))


def to_torch(array: Any) -> torch.Tensor:
    """The same memory as a torch tensor.

    What torch cannot alias is copied: numpy arrays that are read-only, have negative strides or another order of bytes, and cupy
    arrays where cupy's current stream is not torch's (see `one_stream`).

    Parameters
    ----------
    array : array
        A torch tensor, a numpy array or a cupy array.

    Returns
    -------
    torch.Tensor
        On the device of `array`.

    Raises
    ------
    TypeError
        For anything else, and for masked entries.

    Examples
    --------
    >>> to_torch(np.arange(3.0))
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        if np.ma.is_masked(array):
            raise TypeError(
                "the array is masked in some entries, which have no value; fill them, such as by array.filled(0)."
            )
        if not array.flags.writeable or any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
            # torch has no read-only tensors, no negative strides and no other order of bytes
            array = array.astype(array.dtype.newbyteorder("="))
        try:
            return torch.from_numpy(array)
        except TypeError:
            raise TypeError(f"the array is {array.dtype}, which torch does not have; convert it to float64.") from None
    if is_cupy(array):
        with one_stream(cupy_device(array)) as shared:
            tensor = torch.from_dlpack(array.copy() if any(stride < 0 for stride in array.strides) else array)
            return tensor if shared else tensor.clone()
    parts = list(array.values()) if isinstance(array, Mapping) else array if isinstance(array, list | tuple) else ()
    tensors = any(isinstance(part, torch.Tensor | np.ndarray) for part in parts)
    raise TypeError(
        f"expected a torch tensor, a numpy array or a cupy array, got {type(array).__name__}; "
        + ("a vector of named tensors is A.flatten({name: tensor})." if tensors else "convert it first.")
    )


def to_cupy(tensor: torch.Tensor) -> Any:
    """The same memory as a cupy array; a copy of a tensor on the CPU, and where cupy's current stream is not torch's.

    Parameters
    ----------
    tensor : torch.Tensor
        On the CPU or a CUDA device; cupy must have been imported.

    Returns
    -------
    cupy.ndarray
        Safe to free on either library's stream.
    """
    cupy = sys.modules["cupy"]
    if not on_cuda(tensor.device):
        return cupy.asarray(tensor.detach().numpy())
    with one_stream(tensor.device) as shared:
        array = cupy.from_dlpack(tensor.detach())  # on torch's stream: DLPack refuses cupy's per-thread stream
    if shared:
        return array
    with cupy.cuda.Device(tensor.device.index):
        own = array.copy()  # cupy's memory, made on cupy's stream, which has waited for torch's
    with one_stream(tensor.device):  # torch waits for the copy before it hands the tensor's memory out again
        return own


def like(tensor: torch.Tensor, original: Any) -> Any:
    """`tensor` handed back as the kind of array that `original` is.

    Parameters
    ----------
    tensor : torch.Tensor
        What is handed back.
    original : array
        A torch tensor, a numpy array or a cupy array.

    Returns
    -------
    array
        The same memory where it can be.

    Examples
    --------
    >>> like(torch.ones(2), np.zeros(1))
    array([1., 1.], dtype=float32)
    """
    if isinstance(original, torch.Tensor):
        return tensor
    if isinstance(original, np.ndarray):
        return tensor.detach().cpu().numpy()
    return to_cupy(tensor)


def empty(shape: tuple[int, ...], other: torch.Tensor) -> torch.Tensor:
    """Memory in the dtype and on the device of `other`; on the CPU numpy's, which takes huge pages where it can.

    A large block is written for the first time in every product, and pages of 4 KiB cost more than its arithmetic.
    """
    if other.device.type != "cpu" or other.dtype not in NUMPY or type(other) is not torch.Tensor:
        return other.new_empty(shape)
    return torch.from_numpy(np.empty(shape, NUMPY[other.dtype]))


def for_product(shape: tuple[int, ...], other: torch.Tensor, again: bool) -> torch.Tensor:
    """`empty` for a product, in the memory of the latest one that nobody holds any more, if it is large and of this size.

    The first write to memory that is new to the process takes longer than a recurrence's arithmetic. `again`: this memory may
    wait for the next product, once nobody holds it; of the process one waits. Else what waits is given back first.
    """
    size = math.prod(shape) * other.element_size()
    if size <= HEAVY or other.device.type != "cpu" or other.dtype not in NUMPY:
        return empty(shape, other)
    memory = None
    with suppress(IndexError):
        memory = _WAITING.pop()
    if not again or memory is None or memory.nbytes != size:
        memory = None  # before there is more
    if not again:
        return empty(shape, other)
    memory = np.empty(size, np.uint8) if memory is None else memory
    made = memory.view(NUMPY[other.dtype]).reshape(shape)
    weakref.finalize(made, _wait, memory).atexit = False  # torch holds `made` as long as a tensor lies there
    return torch.from_numpy(made)


def waits() -> bool:
    """Whether the memory of a product waits for the next one: products come whose memory does."""
    return bool(_WAITING)


@contextmanager
def scarce() -> Iterator[None]:
    """Inside, in all threads, no product's memory waits: for those who hold so many vectors that one more counts."""
    _SCARCE.append(None)
    _WAITING.clear()
    try:
        yield
    finally:
        _SCARCE.pop()


def _wait(memory: np.ndarray) -> None:
    if not _SCARCE:
        _WAITING.append(memory)


def zeros_like(other: torch.Tensor) -> torch.Tensor:
    """Zeros in the shape, dtype and on the device of `other`; on the CPU numpy's, which take memory as they are written to."""
    if other.device.type != "cpu" or other.dtype not in NUMPY:
        return torch.zeros_like(other)
    return torch.from_numpy(np.zeros(other.shape, NUMPY[other.dtype]))


def copy(x: torch.Tensor) -> torch.Tensor:
    """A clone, in memory as `empty` gives it where x lies in one piece."""
    return empty(x.shape, x).copy_(x) if x.layout is torch.strided and x.is_contiguous() else x.clone()


def rows(V: torch.Tensor) -> torch.Tensor:
    """V (n, b) as contiguous rows (b, n): V itself, transposed, where its columns are contiguous, or else a copy."""
    if V.T.is_contiguous() or V.device.type != "cpu":
        return V.T.contiguous()
    W = empty((V.shape[1], V.shape[0]), V)
    for start in range(0, len(V), TILE):
        W[:, start : start + TILE] = V[start : start + TILE].T
    return W


def hold_squares(size: float, name: str) -> None:
    """Refuse a number whose square float64 does not hold: a size beyond SQUARES, and not 0.

    Parameters
    ----------
    size : float
        The number, >= 0.
    name : str
        What it is the size of, for the sentence.

    Raises
    ------
    ValueError
        One sentence that says by what to scale.

    Examples
    --------
    >>> hold_squares(1.0, "the largest eigenvalue")
    """
    if size == 0 or SQUARES[0] <= size <= SQUARES[1]:
        return
    raise ValueError(
        f"{name} is of size {size:.0e}, whose square float64 does not hold; multiply the operator by a number, such as "
        f"A * {1 / max(size, 1e-300):.0e}, and divide what comes out by it."
    )


def strided(x: torch.Tensor) -> list[torch.Tensor]:
    """What a tensor lies in: itself, or the entries of a sparse one and where they stand."""
    if x.layout == torch.strided:
        return [x]
    if x.layout not in SPARSE:  # which nobody can look into
        return []
    sparse = x.detach().to_sparse_coo().coalesce()
    return [sparse.values(), sparse.indices()]


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: for the CPU, what the kernel and the container's limit leave.

    On a GPU what torch's allocator holds and no tensor has counts as free. Where the system does not say what is free, as macOS,
    it is taken to be half of what is installed.

    Parameters
    ----------
    device : torch.device
        Where.

    Returns
    -------
    int
        Bytes now; 4 GiB where the system tells nothing, as Windows.

    Examples
    --------
    >>> available_memory(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        # torch's own cache is free for tensors
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    free = 4 << 30
    with suppress(AttributeError, OSError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit, used = (Path("/sys/fs/cgroup", name).read_text("utf-8") for name in ("memory.max", "memory.current"))
        if limit.strip() != "max":
            free = min(free, int(limit) - int(used))
    except (OSError, StopIteration, ValueError):
        pass  # not Linux, or no control group: keep what is known
    return max(free, 0)


def tf32(device: torch.device) -> list[str]:
    """What torch computes in tf32 where float32 is said: 10 bits of mantissa, on a GPU that has it.

    >>> tf32(torch.device("cpu"))
    []
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return []
    backends = {
        "matrix products": torch.backends.cuda.matmul,
        "convolutions": getattr(torch.backends.cudnn, "conv", torch.backends.cudnn),
    }

    def on(backend: Any) -> bool:
        return backend.fp32_precision == "tf32" if hasattr(backend, "fp32_precision") else backend.allow_tf32

    return [what for what, backend in backends.items() if on(backend)]


def dtype_name(dtype: torch.dtype) -> str:
    """ "float64" and the like."""
    return str(dtype).removeprefix("torch.")


def hold_default_device() -> None:
    """One sentence where torch makes tensors without numbers by default."""
    if torch.empty(0).is_meta:
        raise ValueError("torch's default device is meta, whose tensors hold no numbers; leave it, and call again.")


def autocast_of(device: torch.device) -> tuple[str, bool, torch.dtype]:
    """What torch.autocast is asked for here: (kind of device, whether it is on, its dtype)."""
    kind = device.type
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def without_autocast() -> ExitStack:
    """As a context: none of it is on inside."""
    stack = ExitStack()
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def hold_autocast(device: torch.device, dtype: torch.dtype) -> None:
    """One sentence where torch.autocast would round what estimators do with vectors of this dtype."""
    kind, on, coarse = autocast_of(device)
    if on and dtype != torch.float64:
        raise ValueError(
            f"torch.autocast is on, which would round the dots of estimators to {coarse}; call them outside of it, or inside "
            f"torch.autocast({kind!r}, enabled=False): an operator over data keeps the precision that it was built in."
        )


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each memory in which they lie, by its address; a tensor inside a transform of torch.func goes by its id."""
    found = {}
    for t in tensors:
        try:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        except RuntimeError:
            found[id(t)] = t.nbytes
    return found


def has_memory(t: torch.Tensor) -> bool:
    """Whether a dense tensor has numbers in memory: one inside a transform of torch.func has not."""
    try:
        return t.layout != torch.strided or t.data_ptr() >= 0
    except RuntimeError:
        return False


def differentiated(t: torch.Tensor) -> bool:
    """Whether what is made of t has a derivative by it: t requires grad, or has a tangent of forward mode."""
    plain = type(t) in (torch.Tensor, torch.nn.Parameter)
    return plain and ((t.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(t).tangent is not None)


def without_graph(t: torch.Tensor) -> torch.Tensor:
    """t without torch's graph; refused where a derivative would be lost by that.

    >>> without_graph(torch.ones(2, requires_grad=True).detach())
    tensor([1., 1.])
    """
    if differentiated(t):
        raise TypeError(
            "the array requires grad or has a tangent of forward mode, which this would lose: of operators, products A @ v alone "
            "are differentiated; pass array.detach()."
        )
    return t.detach()


def nodes(starts: Iterable[Any]) -> list[Any]:
    """The nodes of torch's backward graph from some of them on."""
    found: dict[Any, None] = {}
    queue = list(starts)
    while queue:
        node = queue.pop()
        if node is not None and node not in found:
            found[node] = None
            queue.extend(following for following, _ in node.next_functions)
    return list(found)


def leaf_of(node: Any) -> torch.Tensor | None:
    """The leaf that a node of torch's backward graph ends at; None for others: a user's function may have a `variable` too."""
    leaf: torch.Tensor | None = node.variable if type(node).__name__ == "AccumulateGrad" else None
    return leaf


def reached_leaves(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves that the values depend on, themselves among them where they are leaves."""
    ends = map(leaf_of, nodes(z.grad_fn for z in values))
    return [*(leaf for leaf in ends if leaf is not None), *(z for z in values if z.requires_grad and z.grad_fn is None)]


def machine_epsilon(dtype: torch.dtype | str) -> float:
    """Relative rounding unit 2 u of a floating dtype, or of the one of that name."""
    return float(torch.finfo(getattr(torch, dtype) if isinstance(dtype, str) else dtype).eps)


def summation_error(dtype: torch.dtype | str) -> float:
    """How far sums in `dtype` may be from the same sums in another order, as other blocks, threads and processors have it."""
    eps = machine_epsilon(dtype)
    return min(1e3 * eps, math.sqrt(eps))


def discrepancy(unit: torch.dtype | float) -> float:
    """How far two ways to compute one number in a dtype, or of its `unit`, may be apart, relative to its size, by rounding alone.

    Of products of a deep network about sqrt(depth) eps, with room. A bf16 product may be off by 1e-2, a wrong one is by about 1.
    """
    return min(0.1, 1e3 * (unit if isinstance(unit, float) else machine_epsilon(unit)) ** 0.75)


def all_finite(x: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; one pass over memory in its order, rows or columns, unless the squares overflow."""
    flat = (x.T if x.ndim == 2 and x.T.is_contiguous() else x).detach().reshape(-1)
    if all(math.isfinite(float(torch.dot(part, part))) for part in flat.split(LONGEST)):
        return True
    return bool(torch.isfinite(flat).all())
