"""Whether the products of a run are those of one matrix and its transpose: <x, A y> = <A^T x, y>.

A recurrence knows both sides for some pairs of vectors, from products that it has made anyway. Where they differ by more than
rounding is expected to explain, and only there, the vectors are multiplied again. What comes out otherwise then was wrong once,
or belongs to another matrix (the weights or the data have changed), or is never the same twice: the run ends with a sentence
that names the step. What comes out the same is the operator's own rounding, however large (a softmax near certainty, A - B near
0): the run goes on, and the operator's description says how large.

What no pair can show: an error of A y along y itself, which is that of another symmetric matrix; errors whose parts along the
vectors at hand are within rounding, which move what is computed from those parts by no more; and what is wrong in the same way
in every product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.operators.operator import Operator

CLOSE = 8.0  # times the rounding of a product: so far apart may two engines be
AGAIN = 4.0  # times an asymmetry that was seen to be rounding: what is beyond is looked at again


class KnownProduct(NamedTuple):
    """A product that a run knows: the vector, how far another vector is from its product, and the scale of its rounding."""

    vector: torch.Tensor
    differs: Callable[[torch.Tensor], float]
    scale: float = 0.0


def distance(due: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """How far a product is from the vector that it was."""
    due = arrays.near(due)
    return lambda y: longvectors.norm(arrays.near(y).to(due.dtype) - due)


def random_coefficients(count: int) -> np.ndarray:
    """Numbers (count,), the same each time: the product of a combination holds all products that it is made of."""
    return np.random.default_rng(0).standard_normal(count)


def expected(A: Operator) -> float:
    """How far products with unit vectors may be off, over ||A||, before they are made again."""
    return max(A.product_error, AGAIN * max(leaf.asymmetry for leaf in A.sources))


def hold_size(product: torch.Tensor, size: float, name: str) -> None:
    """One sentence where a product, or what is left of it, is not finite or beyond the numbers whose squares float64 holds.

    `size`: a norm of it that is there anyway; the product is read only where that is suspicious.
    """
    if arrays.SQUARES[0] <= size <= arrays.SQUARES[1]:
        return
    largest = longvectors.largest(product)
    if not math.isfinite(largest):
        raise not_finite(name)
    arrays.hold_squares(largest, name)


def not_finite(name: str) -> ValueError:
    """What to raise about a product that is not finite."""
    return ValueError(
        f"{name} holds NaN or infinity; check the operator with A.adjoint_error(), or multiply it by a small number if its "
        "numbers are near the largest of their dtype (overflow)."
    )


def hold_digits(A: Operator, scale: float) -> None:
    """One sentence where products of this size lie among the numbers of their dtype that have fewer digits than others."""
    limits = torch.finfo(A.dtype)
    quantum = limits.tiny * limits.eps * math.sqrt(A.shape[0])
    if 0 < A.product_error * scale < quantum:
        raise ValueError(
            f"products of {A!r} are of size {scale:.1g}, with entries near {limits.tiny:.1g}, below which {A.dtype} loses digits "
            "(underflow); multiply the operator by a large number, and divide what comes out by it."
        )


def look_again(
    A: Operator, x: torch.Tensor, y: torch.Tensor, found: float, due: float, names: tuple[str, str], scale: float
) -> None:
    """Make the products again that gave <x, A y> = `found` and <A^T x, y> = `due`, one after the other.

    `names` says which they were: that with y, that with x. `scale`: what their difference is relative to. Two products.
    RuntimeError with one sentence, unless both come out as they were; or as each other, within a few times the rounding that is
    expected: vectors in blocks are rounded otherwise than alone, as by an engine that has taken over meanwhile, and `due` may
    be what a recurrence implies.
    """
    hold_digits(A, scale)
    half, close = abs(found - due) / 2, CLOSE * A.product_error * scale
    again = longvectors.dot(x, A @ y)
    if not abs(again - found) <= max(half, close):
        repeated(A, y, names[0])
        raise wrong(names[0], f"along another vector it gave {found:.6g} where {due:.6g} was due", again)
    then = longvectors.dot(y, A.T @ x)
    if not (abs(then - found) <= half <= close or abs(then - due) <= max(half, close)):
        raise wrong(names[1], f"along another vector it gave {due:.6g} where {found:.6g} came out afterwards", then)
    for leaf in A.sources:
        leaf.asymmetry = max(leaf.asymmetry, abs(found - due) / scale)


def repeated(A: Operator, y: torch.Tensor, name: str) -> torch.Tensor:
    """A y, made twice; RuntimeError if it is not twice the same."""
    one: torch.Tensor = (A @ y).clone()  # perhaps a buffer of the operator
    off = longvectors.norm(A @ y - one)
    length = max(longvectors.norm(one), off)
    if not off <= A.product_error * length:
        raise RuntimeError(
            f"{name} is not twice the same: two products with one vector differ by {off / length:.1e} of their length, so that a "
            "kernel is not deterministic or the model is random; see torch.use_deterministic_algorithms, or multiply in float64."
        )
    return one


def hold_form(
    A: Operator, x: torch.Tensor, before: float, most: float, name: str, found: str, source: str = ""
) -> None:
    """RuntimeError where <x, A x> is not to `most` as it was `before`, when it is made again (twice).

    `name`: of the product with x; `found` says what was wrong with it, or with its `source`.
    """
    again = longvectors.dot(x, repeated(A, x, name))
    if abs(again - before) > most:
        raise wrong(source or name, found, again)


class Pivots:
    """Those of T + shift I = L D L^T, T tridiagonal: all are positive where no Ritz value is below -shift (Sylvester)."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def positive(self, alphas: Sequence[float], betas: Sequence[float], shift: float) -> bool:
        """Whether the last one is, of T with these alphas (k,) and, beside them, `betas` (k - 1,); earlier ones are kept."""
        del self.values[len(alphas) - 1 :]
        for i in range(len(self.values), len(alphas)):  # one, or all after a resume
            before = betas[i - 1] ** 2 / self.values[i - 1] if i else 0.0
            self.values.append(alphas[i] + shift - before)
        return self.values[-1] > 0


def hold_zero(A: Operator, y: torch.Tensor, name: str) -> None:
    """A first product that is 0 would end a recurrence, and meets no other: it is made again, 1 / eps times as long."""
    eps = torch.finfo(A.dtype).eps
    again = longvectors.norm(A @ (y / eps)) * eps
    if again != 0:  # NaN, where the longer one is beyond the dtype, is not 0 either
        hold_digits(A, again)
        raise wrong(name, "it was 0", again)


def hold_first(A: Operator, V: torch.Tensor, W: torch.Tensor, name: str) -> None:
    """The first products W = A V of a run: not lost among the numbers that their dtype does not hold."""
    length = float(longvectors.column_dots(W, W).max()) ** 0.5
    if length == 0:
        hold_zero(A, V[:, 0].contiguous(), name)
    hold_digits(A, length)


def wrong(name: str, found: str, again: float) -> RuntimeError:
    """What to raise about a product that comes out otherwise when it is made again."""
    return RuntimeError(
        f"{name} was wrong: {found}, and {again:.6g} when it was made again (a glitch, or the weights or the data changed "
        "meanwhile); run again, without this run's checkpoint."
    )


def hold(
    A: Operator, found: np.ndarray, due: np.ndarray, x: Callable[[int], torch.Tensor], y: Callable[[int], torch.Tensor],
    scale: float, names: tuple[str, str],
) -> None:  # fmt: skip
    """Tables of <x_i, A y_j> and <A^T x_i, y_j>: look again at the pair that is furthest apart, if further than rounding."""
    off = np.abs(found - due)
    if off.size and float(off.max()) > expected(A) * scale:
        i, j = np.unravel_index(int(off.argmax()), off.shape)
        look_again(A, x(int(i)), y(int(j)), float(found[i, j]), float(due[i, j]), names, scale)
