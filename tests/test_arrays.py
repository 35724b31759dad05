"""Arrays cross without a copy where that is possible; dots are float64; sketches see every column."""

import math

import numpy as np
import pytest
import torch

from spectral import arrays


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 1000, arrays.CHUNK + 17])
def test_dot_is_accumulated_in_double(dtype, n):
    x, y = (torch.randn(n) + 1).to(dtype), torch.randn(n).to(dtype)
    exact = float((x.double() * y.double()).sum())
    assert abs(arrays.dot(x, y) - exact) <= 1e-12 * float((x.double() * y.double()).abs().sum())
    assert math.isclose(arrays.norm(x), float(x.double().norm()), rel_tol=1e-13)


def test_dot_takes_strided_vectors():
    X = torch.randn(50, 3)
    assert math.isclose(arrays.dot(X[:, 0], X[:, 1]), float(X[:, 0].double() @ X[:, 1].double()), rel_tol=1e-12)


@pytest.mark.parametrize("shape", [(256, 1, 28, 28), (128, 3, 32, 32), (64, 64), (2048, 784)])
def test_sketch_sees_every_column_and_the_order(shape):
    x = torch.rand(shape)
    flipped = x.flip(-1)
    middle = x.clone()
    middle[..., shape[-1] // 2] = 0  # one column of each image
    assert len({arrays.sketch(t) for t in (x, flipped, middle, x.flip(0))}) == 4
    assert arrays.sketch(x.clone()) == arrays.sketch(x)


def test_sketch_of_masks_and_nothing_is_finite():
    assert math.isfinite(arrays.sketch(torch.tensor([0.0, -math.inf, math.inf, math.nan])))
    assert arrays.sketch(torch.zeros(0)) == 0 and arrays.sketch(torch.tensor(3)) == 3


def test_memory_and_epsilon():
    assert arrays.available_memory(torch.device("cpu")) > 0
    assert arrays.machine_epsilon(torch.float32) == np.finfo(np.float32).eps
