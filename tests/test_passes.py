"""Simplified programs give what their functions give, with fewer operations and less memory."""

import pytest
import torch
from torch.nn import functional as F

from spectral.engine import trace
from spectral.engine.passes import cse

G = torch.Generator().manual_seed(0)
aten = torch.ops.aten


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=G)


A, B, rows, row, column, full = randn(12, 12), randn(4, 3), randn(4, 1), randn(1, 3), randn(4, 1), randn(4, 3)
ones, doubled = torch.ones(4, 3, dtype=torch.float64), 2 * full


def spread(v):
    """A layer norm's tangent: smaller values are broadcast to larger ones."""
    x = (A @ v).view(4, 3)
    m = x.mean(1, keepdim=True)
    s = ((x - m) * full).sum(1, keepdim=True)
    return (((x - m) * rows + full * s) * row + (A @ v)[:3] * B,)


def chain(v):
    x = (A @ v).view(4, 3)
    y = (-x * full / rows) * 3.0
    return torch.ops.aten.tanh_backward(y, 0.5 * torch.tanh(B)) * row, y - x * full


def several_readers(v):
    x = (A @ v).view(4, 3)
    y = x * full + (A @ x.reshape(-1)).view(4, 3) * B
    z = y * row
    return y, z - y, y @ y.new_ones(3, 3)


def again_and_again(v):
    x = (A @ v).view(4, 3)
    once = (x - x.mean(0)) * full
    return once, (x - x.mean(0)) * full.clone() + x, (x * (2 * full)).sum(0), (x * doubled.clone()).sum(0)


def products(v):
    X = (A @ v).view(4, 3)
    return A[:4, :4] @ X + B @ X.t() @ X.new_ones(4, 3), F.linear(A[:2, :4], X.t(), X[0]), X.t() @ B + (B.t() @ X).t()


def batches(v):
    X = (A @ v).view(1, 4, 3).expand(2, 4, 3)
    C = torch.stack([A[:3, :3], A[3:6, :3]])
    return X @ C + X.clone() @ C.transpose(1, 2) + full


def nothing_added(v):
    x = (A @ v).view(4, 3)
    zero = torch.zeros(4, 3, dtype=torch.float64)
    return zero + x * full, (torch.zeros_like(x) + x) - zero


def other_dtype(v):
    x = (A @ v).view(4, 3)
    return (x.float() * full.float()).double() * full, x.to(torch.float32) * 2


def large_kernels(v):
    """Convolutions with kernels larger than what they give, of an image in which the first axes change places."""
    x, K = v.view(1, 3, 2, 2).transpose(0, 1), torch.linspace(-1, 1, 98, dtype=torch.float64).view(2, 1, 7, 7)
    return (
        F.conv2d(x, K, stride=2, padding=3),
        F.conv2d(x, K, padding=3),
        F.conv2d(x, K[..., :3, :3], padding=2, dilation=2),
    )


FUNCTIONS = [
    spread,
    chain,
    several_readers,
    again_and_again,
    products,
    lambda v: (batches(v),),
    nothing_added,
    other_dtype,
    large_kernels,
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [1, 3])
def test_programs_give_what_their_functions_give(function, width):
    V = randn(width, 12)
    program = trace.record(function, randn(12))
    for v in V:
        expected = function(v)
        for got, want in zip(program(v), expected, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            assert torch.allclose(got, want, atol=1e-12, rtol=1e-6 if want.dtype == torch.float32 else 1e-12)
    program.sum = program.adder()
    W = torch.zeros(width, sum(piece.numel() for piece in expected), dtype=torch.float64)
    several = program.batched(width)
    several.sum, several.put = several.adder(), several.adder(new=True)
    several.add(V, W)
    fresh = torch.full_like(W, torch.nan)
    several.add(V, fresh, new=True)
    assert torch.equal(fresh, W)
    for v, w in zip(V, W, strict=True):
        alone = torch.zeros_like(w)
        program.add(v, alone)
        assert torch.allclose(alone, trace.flat(function(v)).double(), atol=1e-6)
        assert torch.allclose(w, alone, atol=1e-6)


@pytest.fixture
def small(monkeypatch):
    """Small constants are looked at too."""
    monkeypatch.setattr(cse, "LEAST", 1)


def operations(function):
    graph = trace.record(function, randn(12)).module.graph
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_what_is_computed_twice_is_computed_once(small):
    found = operations(again_and_again)
    assert found.count(aten.mean.dim) == 1
    assert found.count(aten.sum.dim_IntList) == 1


def test_constants_with_the_same_numbers_are_kept_once_whatever_their_shape(small):
    def function(v):
        x = (A @ v).view(4, 3)
        return x * full, (x.view(2, 6) * full.clone().view(2, 6)).sum(0)

    kept = trace.record(function, randn(12)).constants
    assert sorted(c.numel() for c in kept) == [12, 144]


def test_a_sum_of_scaled_values_takes_one_pass_for_each_value():
    found = operations(lambda v: (((A @ v) * A[0] * 2 + (A @ v) / A[1] - (A.t() @ v) * A[2]) * A[3] + 3 * (A.t() @ v),))
    assert found.count(aten.mul.Tensor) == 2 and found.count(aten.add.Tensor) == 1  # two products of A, two diagonals


def test_sums_of_matrix_products_add_by_themselves():
    found = operations(products)
    assert aten.addmm.default in found and aten.add.Tensor not in found[: found.index(aten.addmm.default)]


def test_random_operations_are_not_merged():
    def noisy(v):
        return torch.nn.functional.dropout(A @ v, 0.5), torch.nn.functional.dropout(A @ v, 0.5)

    graph = trace.record(noisy, randn(12)).module.graph
    kinds = [n.target for n in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]
    assert len(kinds) != 1


def test_what_folding_makes_counts_as_held_beside_what_it_replaces():
    """a, b and a b, 1000 numbers of 8 bytes each, are there together; the program keeps a b alone."""
    a, b = randn(1000), randn(1000)
    program = trace.record(lambda v: (v * a * b,), randn(1000))
    assert (program.held, program.bytes(set())) == (24000, 8000)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1, "dilation": 2}])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_a_weights_gradient_is_no_convolution_by_an_image(axes, options, transposed, width):
    """The derivative in w of <d<g, conv(x, w)>/dx, u> is that of <g, conv(u, w)>, by double backward and by backward."""
    convolve = getattr(F, f"conv{'_transpose' if transposed else ''}{axes}d")
    x, w = randn(2, 3, *[6] * axes), randn(*((3, 4) if transposed else (4, 3)), *[2] * axes)
    g, C = randn(*convolve(x, w, **options).shape), randn(x.numel(), 12)

    def gradient(v):
        at, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.enable_grad():
            (inner,) = torch.autograd.grad(convolve(at, weight, **options), at, g, create_graph=True)
        return torch.autograd.grad(inner, weight, (C @ v).view_as(x))

    program, V = trace.record(gradient, randn(12)), randn(width, 12)
    found = [node.target for node in program.module.graph.nodes]
    assert aten.convolution_backward.default in found and aten.convolution.default not in found
    program = program if width == 1 else program.batched(width)
    for v, got in zip(V, program(V)[0] if width > 1 else [program(V[0])[0]], strict=True):
        weight = w.clone().requires_grad_()
        (expected,) = torch.autograd.grad(convolve((C @ v).view_as(x), weight, **options), weight, g)
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda v: (v * v.sum().item(),), "turns a product's values into a number that decides what is computed"),
        (lambda v: (torch.zeros(12).copy_(v),), "writes a product's values into a tensor that was made before"),
        (lambda v: (A[0].clone().add_(A @ v),), "writes a product's values into a tensor that was made before"),
    ],
)
def test_what_is_no_fixed_program_of_its_argument_is_not_recorded(function, said):
    with pytest.raises(trace.Unrecordable, match=said):
        trace.record(function, randn(12))
