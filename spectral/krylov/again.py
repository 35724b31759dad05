"""Products of a Lanczos recurrence made once more: one that shows whether it is the same matrix still, or all for their basis."""

from __future__ import annotations

import math

import numpy as np
import torch

from spectral import arrays, longvectors
from spectral.krylov.lanczos import Lanczos
from spectral.krylov.symmetry import KnownProduct, distance, random_coefficients


def known_product(of: Lanczos) -> KnownProduct | None:
    """A product that a recurrence knows; None where it knows none of all its vectors.

    With a basis x is a random combination of V and of what is deflated, U: A V = V T + beta q e^T and A U = U diag(known) say
    what comes out, which holds all of them together. Without one x is the vector that was multiplied last, and A x less its
    parts along x and the next is as long as the beta before.
    """
    j, last, q, _ = of.now
    if last is None or of.betas[j - 1] == 0 or of.reorthogonalize == "selective":
        return None
    alphas, betas = np.array(of.alphas[:j]), np.array(of.betas[:j])
    scale = float(np.abs(alphas).max() + 2 * betas.max())
    if of.kept is None or not of.kept.exact:
        before = float(betas[-2]) if j > 1 else 0.0

        def differs(y: torch.Tensor) -> float:
            rest = longvectors.norm(y.sub(last, alpha=float(alphas[-1])).sub_(q, alpha=float(betas[-1])))
            return max(abs(longvectors.dot(last, y) - float(alphas[-1])), abs(rest - before))

        return KnownProduct(last, differs, scale)
    c = random_coefficients(j)
    image = alphas * c
    image[:-1] += betas[:-1] * c[1:]
    image[1:] += betas[:-1] * c[:-1]
    x = of.combine(c[None])[0]
    due = of.combine(image[None])[0].add_(q, alpha=float(betas[-1] * c[-1]))
    if of.U is not None:
        d = random_coefficients(len(of.U))
        x += longvectors.combination(d, of.U)
        due += longvectors.combination(d * of.known, of.U)
    return KnownProduct(x, distance(due), scale * float(np.linalg.norm(c)))


def second_pass(of: Lanczos, start: torch.Tensor, coefficients: np.ndarray) -> torch.Tensor:
    """coefficients (c, k) times the basis of a recurrence from `start`, which is computed again: (c, n), k - 1 products.

    Memory: four vectors and the c that are made. The same products give the same basis bit for bit; ValueError if they do not.
    """
    record = of.record()
    state = Lanczos(of.A, start, record.steps, reorthogonalize=False, deflate=of.U, known=of.known)
    total = start.new_zeros(len(coefficients), len(start))
    for j in range(record.steps):
        for row, c in zip(total, coefficients[:, j], strict=True):
            row.add_(state.q, alpha=float(c))
        if j + 1 < record.steps:
            state.step()
    drift = max(np.abs(np.array(state.alphas) - record.alphas[:-1]).max(initial=0.0),
                np.abs(np.array(state.betas) - record.betas[:-1]).max(initial=0.0))  # fmt: skip
    if drift > math.sqrt(arrays.machine_epsilon(of.A.dtype)) * np.abs(record.alphas).max():
        raise ValueError(
            f"the second pass differs from the first by {drift:.2g}: the operator is not deterministic; use reorthogonalize=True."
        )
    return total
