"""Linear systems: conjugate gradients, MINRES and LSMR, each as a coroutine that asks for products and does everything else.

`Ask(v)` is answered by A v, `Ask(u, transposed=True)` by A^T u, and by None where no product is left: the recurrence then ends
with what it has. Whoever answers may multiply what several of them ask for as one block. Recurrences know residuals only by
their own arithmetic; `refined` asks for the true one, and goes on from it where it is larger.

Legend: A (m, n), x (n,), b and r (m,); c, s rotations. Vectors are in A's dtype, dots and scalars float64.
Sources: Hestenes, Stiefel (1952); Paige, Saunders (1975), MINRES; Fong, Saunders (2011), LSMR, SIAM J. Sci. Comput. 33, Alg. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch

from spectral import longvectors
from spectral.krylov.symmetry import hold_size

INNER = 0.5  # of a tolerance: where a recurrence ends, so that the true residual has room
SINGULAR = 4.0  # times eps ||A||: a direction that A shortens to less is taken for one of its kernel
KERNEL = 64.0  # times ||A r|| / ||r|| at first: a recurrence lowers that by the root of eps at most
SMALLEST = 64.0  # times eps ||A||: an eigenvalue that is solved for where r may be in the kernel
ACROSS = 0.02  # of ||A r||, along r: less where r is in the kernel and a rest is not, all where it is an eigenvector
GAIN = 4.0  # times eps: what one recurrence gains on its right side at most
FURTHER = 10  # steps beside twice those before, in which a recurrence must have lowered what one before it could not
HALVED = 0.5  # of a residual: one that a whole recurrence has lowered by less is down to rounding


class Ask(NamedTuple):
    """A product to be made; the `last` ones say how good a solution is, and are made when no other is."""

    vector: torch.Tensor
    transposed: bool = False
    last: bool = False


class Solved(NamedTuple):
    """What a recurrence ends with: x, its steps, why it ended, and ||A|| as far as it has seen it.

    `stop`: "tolerance", "budget", "iterations", "singular" (the right side is not in the range of A, up to rounding),
    "indefinite" (of conjugate gradients) or "rounding".
    """

    x: torch.Tensor
    steps: int
    stop: str
    norm: float
    residual: float = math.nan
    scale: float = math.nan  # of the residual: ||b||, of least squares ||A^T b||


Run = Generator[Ask, Any, Solved]  # sent: the product (a tensor), or None
Method = Callable[[torch.Tensor, float, int, float, float], Run]


def conjugate_gradients(b: torch.Tensor, goal: float, most: int, eps: float, norm: float = 0.0) -> Run:
    """A x = b for positive definite A, until ||r|| <= goal: one product a step, four vectors. `norm`: ||A|| as seen before."""
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rho = square = longvectors.dot(r, r)  # ||r||^2 and ||p||^2
    coupling = 0.0  # of A: ||A|| is seen in the rows of its Lanczos matrix
    for k in range(most):
        if rho <= goal**2:
            return Solved(x, k, "tolerance", norm)
        w = yield Ask(p)
        if w is None:
            return Solved(x, k, "budget", norm)
        curvature = longvectors.dot(p, w)
        hold_size(w, math.sqrt(abs(curvature)), f"the product in step {k + 1} of conjugate gradients")
        if abs(curvature) <= SINGULAR * eps * norm * square or curvature == 0:
            return Solved(x, k, "singular", norm)
        if curvature < 0:
            return Solved(x, k, "indefinite", norm)
        alpha = rho / curvature
        norm = max(norm, 1 / alpha + coupling)
        x.add_(p, alpha=alpha)
        r.sub_(w, alpha=alpha)
        before, rho = rho, longvectors.dot(r, r)
        beta = rho / before
        p.mul_(beta).add_(r)
        square, coupling = rho + beta**2 * square, (beta + math.sqrt(beta)) / alpha
    return Solved(x, most, "iterations", norm)


def minres(b: torch.Tensor, goal: float, most: int, eps: float, norm: float = 0.0) -> Run:
    """A x = b for symmetric A, of least ||r|| in the Krylov space, until ||r|| <= goal: one product a step, seven vectors."""
    beta = phi = longvectors.norm(b)
    x, v, before = torch.zeros_like(b), b / beta, torch.zeros_like(b)
    older, old = torch.zeros_like(b), torch.zeros_like(b)  # directions
    c, s, delta_bar, epsilon, coupling, first = -1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    solved, stuck, spent = "tolerance", "rounding", "iterations"
    for k in range(most):
        if phi <= goal:
            return Solved(x, k, solved, norm)
        w = yield Ask(v)
        if w is None:
            return Solved(x, k, "budget", norm)
        y = torch.sub(w, before, alpha=coupling)  # Lanczos
        alpha = longvectors.dot(v, y)
        y.sub_(v, alpha=alpha)
        beta = longvectors.norm(y)
        hold_size(y, math.hypot(alpha, beta), f"the product in step {k + 1} of MINRES")
        norm = max(norm, coupling + abs(alpha) + beta)
        delta, gamma_bar, last = c * delta_bar + s * alpha, s * delta_bar - c * alpha, epsilon
        epsilon, delta_bar = s * beta, -c * beta
        shortened = math.hypot(gamma_bar, delta_bar)  # ||A r|| / ||r||
        first = first or shortened
        # of a kernel and a rest of its range A keeps the rest alone, which is orthogonal to the kernel
        across = abs(alpha) <= max(ACROSS * shortened, SINGULAR * eps * norm)
        if k == 0 and across and shortened <= math.sqrt(eps) * norm:
            if shortened <= SINGULAR * eps * norm:
                return Solved(x, k, "singular", norm)
            solved = stuck = spent = "singular"  # unless the true residual falls: the rest may hide a small eigenvalue
        if shortened <= math.sqrt(eps) * min(norm, KERNEL * first):  # rounding lets it rise again
            return Solved(x, k, stuck, norm)
        gamma = math.hypot(gamma_bar, beta)
        c, s = gamma_bar / gamma, beta / gamma
        direction = torch.sub(v, older, alpha=last).sub_(old, alpha=delta).div_(gamma)
        x.add_(direction, alpha=c * phi)
        phi *= s
        older, old = old, direction
        if beta == 0:
            return Solved(x, k + 1, solved, norm)
        before, v, coupling = v, y.div_(beta), beta
    return Solved(x, most, spent, norm)


def lsmr(b: torch.Tensor, tol: float, most: int, damp: float) -> Run:
    """min ||A x - b||^2 + damp^2 ||x||^2, until the normal equations hold to tol ||A^T b||: two products a step.

    `residual` is theirs, ||A^T (b - A x) - damp^2 x||, made anew at the end by two products. Four vectors of length n, two of m.
    """
    beta = longvectors.norm(b)
    u = b / beta if beta > 0 else b
    product = yield Ask(u, transposed=True, last=True)
    v = product.clone()
    alpha = longvectors.norm(v)
    hold_size(v, alpha, "the first product A^T u of LSMR")
    x, steps, stop, size, norm = torch.zeros_like(v), 0, "tolerance", alpha * beta, alpha
    goal = tol * size
    if size > 0:
        v.div_(alpha)
        x, steps, stop, norm = yield from _bidiagonal(u, v, alpha, beta, INNER * goal, most, damp)
    if steps == 0:
        return Solved(x, 0, stop, norm, size, size)
    w = yield Ask(x, last=True)
    z = yield Ask(b - w, transposed=True, last=True)
    residual = longvectors.norm(torch.sub(z, x, alpha=damp**2))
    ended = "rounding" if stop == "tolerance" else stop
    return Solved(x, steps, "tolerance" if residual <= goal else ended, norm, residual, size)


def _bidiagonal(
    u: torch.Tensor, v: torch.Tensor, alpha: float, beta: float, goal: float, most: int, damp: float
) -> Generator[Ask, Any, tuple[torch.Tensor, int, str, float]]:
    """The steps of `lsmr` from unit u and v with A^T u = alpha v."""
    x, h, h_bar = torch.zeros_like(v), v.clone(), torch.zeros_like(v)
    zeta_bar, alpha_bar, rho, rho_bar, c_bar, s_bar, norm = alpha * beta, alpha, 1.0, 1.0, 1.0, 0.0, alpha
    for k in range(most):
        if abs(zeta_bar) <= goal:
            return x, k, "tolerance", norm
        w = yield Ask(v)
        if w is None:
            return x, k, "budget", norm
        u = torch.sub(w, u, alpha=alpha)
        beta = longvectors.norm(u)
        hold_size(u, math.hypot(alpha, beta), f"the product A v in step {k + 1} of LSMR")
        z = (yield Ask(u.div_(beta), transposed=True)) if beta > 0 else torch.zeros_like(v)
        if z is None:
            return x, k, "budget", norm
        v = torch.sub(z, v, alpha=beta)
        before, alpha = alpha, longvectors.norm(v)
        hold_size(v, math.hypot(alpha, beta), f"the product A^T u in step {k + 1} of LSMR")
        norm = max(norm, math.hypot(before, beta))
        if alpha > 0:
            v.div_(alpha)
        alpha_hat = math.hypot(alpha_bar, damp)
        old, rho = rho, math.hypot(alpha_hat, beta)
        if rho == 0:
            return x, k, "singular", norm
        c, s = alpha_hat / rho, beta / rho
        theta, alpha_bar = s * alpha, c * alpha
        theta_bar, old_bar = s_bar * rho, rho_bar
        rho_bar = math.hypot(c_bar * rho, theta)
        c_bar, s_bar = c_bar * rho / rho_bar, theta / rho_bar
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        h_bar = torch.sub(h, h_bar, alpha=theta_bar * rho / (old * old_bar))
        x.add_(h_bar, alpha=zeta / (rho * rho_bar))
        h = torch.sub(v, h, alpha=theta / rho)
    return x, most, "iterations", norm


def refined(method: Method, b: torch.Tensor, tol: float, most: int, eps: float) -> Run:
    """A x = b to a true residual of tol ||b||, or until rounding lowers it no more: solved again for what is left of b.

    Where A hardly leaves anything of r, another recurrence tells by its first product whether r may be in the kernel or is of
    small eigenvalues. What it does not lower then is in the kernel ("singular"), or down to rounding.
    """
    scale = size = longvectors.norm(b)
    x, r, goal, steps, stop, norm = torch.zeros_like(b), b, tol * scale, 0, "tolerance", 0.0
    last, allowed = False, most
    while size > goal:
        d, made, stop, seen, *_ = yield from method(
            r / size, max(INNER * goal / size, GAIN * eps), min(allowed, most - steps), eps, norm
        )
        known, norm = norm, max(norm, seen)
        steps += made
        if made == 0 or (stop == "singular" and longvectors.norm(d) * SMALLEST * eps * norm >= 1):
            break  # of rounding alone
        d.mul_(size).add_(x)
        w = yield Ask(d, last=True)
        left, before = b - w, size
        size = longvectors.norm(left)
        short = stop == "rounding"  # of A r
        # in the kernel products are rounding, which none of them tells
        if size > before * (1 + short * GAIN * eps):
            size, stop = before, "rounding" if stop == "tolerance" or (last and stop != "singular") else stop
            if stop in ("rounding", "singular") and norm > 2 * known and not last:
                continue
            break
        x, r = d, left
        if last and size > HALVED * before:
            if stop != "singular":
                stop = "rounding"
            break
        if short:
            last, allowed = size > HALVED * before, 2 * made + FURTHER
            continue
        if stop == "tolerance" and size > max(goal, HALVED * before):
            stop = "rounding"
        if stop == "singular" and size <= HALVED * before:
            continue  # or nearly so: what is left may still be solved for
        if stop != "tolerance":
            break
    return Solved(x, steps, "tolerance" if size <= goal else stop, norm, size, scale)
