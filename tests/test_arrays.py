"""Arrays cross without a copy where that is possible; dots are float64; sketches see every column."""

import math
import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from spectral import arrays, longvectors


def test_numpy_and_torch_share_memory_both_ways():
    a = np.arange(6.0).reshape(2, 3)
    t = arrays.to_torch(a)
    t[0, 0] = 7
    assert a[0, 0] == 7 and arrays.to_torch(t) is t
    back = arrays.like(t, a)
    assert isinstance(back, np.ndarray) and np.shares_memory(back, a)
    assert arrays.like(t, torch.zeros(0)) is t
    assert np.shares_memory(arrays.to_torch(a[:, ::2]).numpy(), a)


def test_what_torch_cannot_alias_is_copied():
    a = np.arange(6.0)
    a.flags.writeable = False
    for given in (a, np.arange(6.0)[::-1], np.broadcast_to(np.ones(1), (4,))):
        t = arrays.to_torch(given)
        assert t.tolist() == given.tolist() and not np.shares_memory(t.numpy(), given)


@pytest.mark.parametrize("given", [[1.0, 2.0], 3.0, None, "x"])
def test_no_array_is_one_sentence(given):
    assert not arrays.is_array(given)
    with pytest.raises(TypeError, match=rf"expected a torch tensor, .* got {type(given).__name__}; convert it"):
        arrays.to_torch(given)


@pytest.mark.parametrize("kind", ["generic", "one row", "two rows", "rank one", "ones"])
def test_a_sketch_is_linear_and_has_the_length_of_what_it_stands_for(kind):
    sizes = [7, 300_001, 2 * 4096, 4096 * 3 + 5]
    x, y = (torch.from_numpy(np.random.default_rng(i).standard_normal(sum(sizes))) for i in (0, 1))
    if kind == "rank one":  # every row that a sign multiplies is the same
        x = torch.cat([x[:4096].repeat(74)[: n if n != 7 else 7] for n in sizes])
    elif kind == "ones":
        x = torch.ones(sum(sizes), dtype=torch.float64)
    elif "row" in kind:
        x[7 + 4096 * (1 + (kind == "two rows")) :] = 0
        x[:7] = 0

    def sketch(x):
        return longvectors.sketch(list(x.split(sizes)))

    assert torch.allclose(sketch(2 * x - y), 2 * sketch(x) - sketch(y), rtol=0, atol=1e-10)
    assert torch.allclose(sketch(x.float()), sketch(x.float().double()), rtol=0, atol=1e-4 * float(x.abs().max()))
    ratio = float(sketch(x).norm() / x.norm()) ** 2
    # half of the mean is one standard deviation of the worst x, an entry's square is exact
    assert abs(ratio - 1) < {"one row": 1e-12, "generic": 0.04}.get(kind, 1.5)
    assert ratio > 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 1000, longvectors.CHUNK + 17])
def test_dot_is_accumulated_in_double(dtype, n):
    x, y = (torch.randn(n) + 1).to(dtype), torch.randn(n).to(dtype)
    exact = float((x.double() * y.double()).sum())
    assert abs(longvectors.dot(x, y) - exact) <= 1e-12 * float((x.double() * y.double()).abs().sum())
    assert math.isclose(longvectors.norm(x), float(x.double().norm()), rel_tol=1e-13)


@pytest.mark.parametrize("verb", ["dot", "norm", "dots", "coefficients", "coefficients of two", "cross"])
def test_a_sum_is_not_rounded_more_often_for_being_longer(verb):
    """Of n entries in pieces of c: at most (c + n / c) eps / 2 of the sum of sizes (Higham 2002, section 4.2)."""
    n, c, eps = 1 << 24, longvectors.CHUNK, np.finfo(float).eps
    x = torch.full((n,), math.sqrt(0.4 * eps), dtype=torch.float64)  # each square is lost if it is added to 1 by itself
    x[0] = 1.0
    due = 1 + (n - 1) * float(x[1]) ** 2
    found = {
        "dot": lambda: longvectors.dot(x, x.clone()),
        "norm": lambda: longvectors.norm(x) ** 2,
        "dots": lambda: longvectors.dots(x[None], x[None].clone()),
        "coefficients": lambda: longvectors.coefficients(x[None], x),
        "coefficients of two": lambda: longvectors.coefficients(torch.stack([x, -x]), x[None])[0],
        "cross": lambda: longvectors.cross(x[:, None], x[:, None])[0, 0],
    }[verb]()
    assert abs(float(found) - due) <= (c + n / c) * eps / 2


def test_dot_takes_strided_vectors():
    X = torch.randn(50, 3)
    assert math.isclose(longvectors.dot(X[:, 0], X[:, 1]), float(X[:, 0].double() @ X[:, 1].double()), rel_tol=1e-12)


def test_memory_and_epsilon():
    assert arrays.available_memory(torch.device("cpu")) > 0
    assert arrays.machine_epsilon(torch.float32) == np.finfo(np.float32).eps


# cupy: a stand-in that computes with numpy and writes down what each stream does ------------------------------------
class Stream:
    def __init__(self, world, ptr):
        self.world, self.ptr, self.name = world, ptr, {7: "torch", 9: "cupy"}.get(ptr, "null")

    def record(self):
        return self.name

    def wait_event(self, event):
        self.world.log.append(f"{self.name} waits for {event}")

    def __enter__(self):
        self.world.current.append(self)

    def __exit__(self, *problem):
        assert self.world.current.pop() is self


class World(types.ModuleType):
    """The module `cupy`, with its current stream, and torch's."""

    def __init__(self):
        super().__init__("cupy")
        world, self.log, self.torch_stream, self.streams = self, [], 0, {}

        class ndarray:
            def __init__(self, array):
                self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype
                self.strides, self.device = array.strides, types.SimpleNamespace(id=0)

            def copy(self):
                world.log.append(f"copy on {world.current[-1].name}")
                return ndarray(self.array.copy())

            def reshape(self, *shape):
                return ndarray(self.array.reshape(*shape))

            def __dlpack__(self, **options):
                world.log.append(f"export on {world.current[-1].name}")
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        self.ndarray, self.asarray = ndarray, lambda array: ndarray(np.array(array))
        self.cuda = types.SimpleNamespace(
            Device=lambda index=0: nullcontext(),
            ExternalStream=self.stream,
            get_current_stream=lambda: self.current[-1],
        )
        self.current = [self.stream(0)]

    def stream(self, ptr):
        return self.streams.setdefault(ptr, Stream(self, ptr))

    def from_dlpack(self, tensor):
        self.log.append(f"import on {self.current[-1].name}")
        return self.ndarray(tensor.numpy())  # which raises, as DLPack does, where a gradient is asked for


@pytest.fixture
def cupy(monkeypatch):
    world = World()
    monkeypatch.setitem(sys.modules, "cupy", world)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device=None: types.SimpleNamespace(cuda_stream=world.torch_stream)
    )
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)
    monkeypatch.setattr(arrays, "cupy_device", lambda owner: torch.device("cpu"))
    return world


BORDER = ["torch waits for cupy", "{} on torch", "cupy waits for torch"]


def crossing(verb):
    return [line.format(verb) for line in BORDER]


def test_on_one_stream_memory_is_shared_and_nothing_waits(cupy):
    x = cupy.ndarray(np.arange(6.0))
    t = arrays.to_torch(x)
    back = arrays.like(t, x)
    assert np.shares_memory(t.numpy(), x.array) and np.shares_memory(back.array, x.array)
    assert cupy.log == ["export on null", "import on null"]
    memory = x.array
    del x, back
    memory[0] = 5.0
    assert t[0] == 5.0  # the tensor keeps the memory that the array has left


def test_on_two_streams_one_copy_is_made_and_each_waits_for_the_other(cupy):
    cupy.torch_stream, x = 7, cupy.ndarray(np.arange(6.0))
    with cupy.stream(9):
        t = arrays.to_torch(x)
        assert t.tolist() == x.array.tolist() and not np.shares_memory(t.numpy(), x.array)
        assert cupy.log == crossing("export") and cupy.current[-1].name == "cupy"
        cupy.log.clear()
        back = arrays.to_cupy(t.requires_grad_())
        assert back.array.tolist() == x.array.tolist() and not np.shares_memory(back.array, x.array)
    waits = [crossing("")[0], crossing("")[2]]
    assert cupy.log == [*crossing("import"), "copy on cupy", *waits]


def test_streams_wait_for_each_other_after_an_error_too(cupy):
    cupy.torch_stream = 7
    with cupy.stream(9):
        with pytest.raises(ZeroDivisionError), arrays.one_stream(torch.device("cpu")) as shared:
            assert shared is False and cupy.current[-1].name == "torch"
            raise ZeroDivisionError
        assert cupy.current[-1].name == "cupy" and cupy.log[-1] == "cupy waits for torch"


def test_cupy_arrays_that_torch_cannot_alias_are_copied(cupy):
    t = arrays.to_torch(cupy.ndarray(np.arange(3.0)[::-1]))
    assert t.tolist() == [2.0, 1.0, 0.0] and cupy.log == ["copy on null", "export on null"]


def test_tensors_on_the_cpu_reach_cupy_by_a_copy(cupy, monkeypatch):
    monkeypatch.setattr(arrays, "on_cuda", lambda device: device.type == "cuda")
    t = torch.arange(3.0)
    assert arrays.to_cupy(t).array.tolist() == [0, 1, 2] and cupy.log == []


def test_only_arrays_of_cupy_are_cupy_arrays(cupy):
    assert arrays.is_cupy(cupy.ndarray(np.ones(2))) and not arrays.is_cupy(cupy.stream(9))
    assert not arrays.is_cupy(np.ones(2))


def test_rows_of_a_block_and_memory_like_it():
    """Rows are V transposed, contiguous, without a copy where the columns are; any size, beside a tile's border."""
    for n in (1, 4095, 4097, 9000):
        V = torch.arange(3.0 * n).view(n, 3)
        assert torch.equal(arrays.rows(V), V.T) and arrays.rows(V).is_contiguous()
    columns = V.T.contiguous().T
    assert arrays.rows(columns).data_ptr() == columns.data_ptr()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        made = arrays.empty((2, 5), torch.ones(1, dtype=dtype))
        assert made.dtype == dtype and made.shape == (2, 5)


def test_what_waits_for_a_product_is_not_given_back_by_a_small_one(monkeypatch):
    """J J^T: of the two products of each step one is of the parameters' size, one of the outputs'."""
    monkeypatch.setattr(arrays, "HEAVY", 4000)
    like = torch.zeros(1)
    large = arrays.for_product((1, 2000), like, True)
    at = large.data_ptr()
    del large
    small = arrays.for_product((1, 10), like, False)
    assert arrays.for_product((1, 2000), like, True).data_ptr() == at != small.data_ptr()
    other = arrays.for_product((1, 2000), like, False)  # while products are tested none waits beside them
    assert arrays.for_product((1, 2000), like, True).data_ptr() != other.data_ptr()
