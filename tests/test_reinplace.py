"""Programs that write over dying values give what they gave, whatever names a value has, and leave what is not theirs."""

import pytest
import torch

from spectral.engine import trace

torch.manual_seed(0)
A, c = torch.randn(6, 6).double(), torch.randn(6).double()
M = torch.randn(3, 6).double()
aten = torch.ops.aten


def view_is_read_later(v):
    x = A @ v
    y = x.view(2, 3)
    return x * c, y.T @ y.new_ones(2)


def view_of_a_view_is_read_later(v):
    x = A @ v
    y = x.view(2, 3).t()
    z = x * c
    return z, y.reshape(-1) * 3


def slice_is_read_later(v):
    x = A @ v
    part = x[1:4]
    return x * c, part * c[:3]


def split_is_read_later(v):
    x = A @ v
    left, right = x.split(3)
    return x * c, left * c[:3], right + left


def unsafe_split_is_read_later(v):
    left, right = torch.unsafe_split(A @ v, 3)
    both = left * c[:3]
    return both, right * c[3:], left + right


def itself(v):
    x = A @ v
    return x + x, (A @ x) - x


def its_own_other_half(v):
    x = A @ v
    return (x.view(2, 3)[0] * c[:3] + x.view(2, 3)[1],)


def transposed_of_itself(v):
    X = (A @ v)[:, None] * A  # 6, 6
    return (X + X.t(),)


def input_alone(v):
    return v * c, v + v * c, -v


def constants_alone(v):
    return (A.new_ones(6) * c + v,)


def expanded(v):
    x = (A @ v).sum().expand(3, 6)
    return x * M, x + M @ A * v


def broadcast(v):
    x = A @ v
    return x * M, M * x + x, x[:, None] + A * x


def product_and_sum(v):
    x, y = A @ v, A.T @ v
    return x + y * c, x - y * c, torch.add(x, y * c, alpha=2), y * c - x


def result_given_twice(v):
    x = A @ v
    y = x * c
    return y, y, y.view(2, 3), x


def reshaped_chain(v):
    x = (A @ v).view(2, 3)
    for _ in range(4):
        x = (x * c.view(2, 3)).transpose(0, 1).contiguous().view(3, 2).t() / 2
        x = -x + x.flip(0)
    return (x,)


FUNCTIONS = [
    view_is_read_later,
    view_of_a_view_is_read_later,
    slice_is_read_later,
    split_is_read_later,
    unsafe_split_is_read_later,
    itself,
    its_own_other_half,
    transposed_of_itself,
    input_alone,
    constants_alone,
    expanded,
    broadcast,
    product_and_sum,
    result_given_twice,
    reshaped_chain,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("columns", [1, 3])
def test_values_are_kept(function, columns):
    program = trace.record(function, torch.randn(6).double())
    if columns > 1:
        program = program.batched(columns)
    program.sum = program.adder()
    constants = [constant.clone() for constant in program.constants]
    V = torch.randn(columns, 6).double()
    before = V.clone()
    expected = torch.stack([trace.flat(function(v)) for v in V])
    for _ in range(3):  # nothing is left behind
        W = torch.ones_like(expected)
        if columns > 1:
            program.add(V, W)
        else:
            program.add(V[0], W[0])
        assert torch.allclose(W - 1, expected, atol=1e-13)
    assert torch.equal(V, before)
    assert all(map(torch.equal, program.constants, constants))


def targets(function):
    program = trace.record(function, torch.randn(6).double())
    return [node.target for node in program.adder().graph.nodes]


def test_a_result_is_written_where_an_operand_dies():
    used = targets(lambda v: (A @ ((A @ v) * c + 0 * (A.T @ v)),))
    assert aten.mul_.Tensor in used
    assert aten.mul.Tensor in targets(view_is_read_later)  # the last name is read after it


def test_a_product_and_a_sum_are_one_operation():
    used = targets(lambda v: (A @ (A @ v + (A.T @ v) * c),))
    assert aten.addcmul_.default in used and aten.mul.Tensor not in used


OPERATIONS = [
    lambda x, y: x * c,
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: (A @ y) / 3,
    lambda x, y: x.view(2, 3).t().reshape(6),
    lambda x, y: torch.cat(list(reversed(y.split(3)))),
    lambda x, y: x + y * c,
    lambda x, y: -x,
    lambda x, y: x.view(2, 3)[:1].expand(2, 3).reshape(6) * 2,
]


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed):
    """Forty random compositions of products, views, sums and pointwise operations."""
    generator = torch.Generator().manual_seed(seed)

    def pick(k):
        return int(torch.randint(k, (), generator=generator))

    plan = [(pick(9), pick(1000), pick(1000)) for _ in range(25)]

    def function(v):
        values = [v, A @ v]
        for operation, i, j in plan:
            x, y = values[i % len(values)], values[j % len(values)]
            values.append(OPERATIONS[operation](x, y))
        return tuple(values[-3:])

    v = torch.randn(6, generator=generator).double()
    program = trace.record(function, v)
    for one, V in ((program, v), (program.batched(2), torch.stack([v, 2 * v]))):
        one.sum = one.adder()
        expected = trace.flat(function(v)) if V is v else torch.stack([trace.flat(function(u)) for u in V])
        W = torch.zeros_like(expected)
        one.add(V, W)
        assert torch.allclose(W, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
