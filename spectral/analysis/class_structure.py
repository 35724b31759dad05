"""The three levels of the Gauss-Newton matrix of a classifier: class means, cross-class means, and what scatters about them.

Symbols (Papyan 2020): sample i has class c = y_i and probabilities p_i; its gradient, were its label c', is
δ_{i,c'} = J_iᵀ (p_i − e_{c'}), which weighs w_{i,c'} = m_i p_{i,c'} / N (m_i what the loss lets the sample count). Then
G = Σ_{i,c'} w_{i,c'} δ_{i,c'} δ_{i,c'}ᵀ, as Σ_{c'} p_{c'} (p − e_{c'})(p − e_{c'})ᵀ = diag(p) − p pᵀ.
Legend: n samples, C classes, P parameters, b columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral import arrays, distributed
from spectral.estimators.budget import hold_whole
from spectral.networks.curvature import GaussNewton
from spectral.networks.jacobian import Jacobian
from spectral.networks.places import output_tensor
from spectral.operators.operator import Operator
from spectral.results import Array

LEVELS = ("same", "class", "cross", "within")


class Levels(Operator):
    """The sum of some levels in the space of the outputs, (n C, n C): with J around it, Jᵀ S J, it is that part of G.

    Each level is Dᵀ Q D: D takes a change x_i of the logits to the n C numbers (p_i − e_{c'})ᵀ x_i, and Q, which projects them
    onto weighted means, has the same weights as G itself. Cost: O(n C) a column.
    """

    def __init__(self, levels: tuple[str, ...], p_nC: Tensor, y_n: Tensor, w_nC: Tensor) -> None:
        n, C = p_nC.shape
        super().__init__((n * C, n * C), p_nC.dtype, p_nC.device, symmetric=True, nonnegative=True)
        self.levels, self.p, self.y = levels, p_nC, y_n
        own = torch.nn.functional.one_hot(y_n, C).bool()
        self.w_same, self.w_other = w_nC * own, w_nC * ~own
        self.mass_CC = p_nC.new_zeros(C, C).index_add_(0, y_n, self.w_other)  # w_{c,c'}

    def spread(self, t_CC: Tensor) -> Tensor:
        """Dᵀ of what weighs w_{i,c'} t_{c,c'}: (C, C, b), t of class c and label c' != c, to rows (n C, b)."""
        return self._back(self.w_other[..., None] * t_CC[self.y])

    def _back(self, q_nCb: Tensor) -> Tensor:
        rows = self.p[..., None] * q_nCb.sum(1, keepdim=True) - q_nCb
        return rows.reshape(self.shape[0], -1)

    def _apply(self, X: Tensor) -> Tensor:
        x = X.view(*self.p.shape, -1)
        d = (self.p[..., None] * x).sum(1, keepdim=True) - x
        weight = self.w_other[..., None]
        sums = d.new_zeros(*self.mass_CC.shape, d.shape[-1]).index_add_(0, self.y, weight * d)
        cross = _mean(sums, self.mass_CC[..., None])  # of each pair (c, c')
        means = _mean(sums.sum(1, keepdim=True), self.mass_CC.sum(1)[:, None, None])  # of each class c
        t, q = torch.zeros_like(cross), torch.zeros_like(d)
        if "same" in self.levels:
            q += self.w_same[..., None] * d
        if "class" in self.levels:
            t += means
        if "cross" in self.levels:
            t += cross - means
        if "within" in self.levels:
            t -= cross
            q += weight * d
        return self._back(q + weight * t[self.y])

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "levels": list(self.levels)}


def _mean(sums: Tensor, mass: Tensor) -> Tensor:
    """0 where nothing weighs: a class without samples, a probability that is 0."""
    return torch.where(mass > 0, sums / torch.where(mass > 0, mass, torch.ones_like(mass)), 0.0)


@dataclass(frozen=True)
class ClassStructure:
    """A Gauss-Newton matrix taken apart into G = G_same + G_class + G_cross + G_within, each positive semi-definite.

    - "class": Σ_c w_c δ_c δ_cᵀ, of the C class means δ_c of the gradients with wrong labels c' != c; its eigenvalues predict
      the outliers of G.
    - "cross": Σ_{c, c' != c} w_{c,c'} (δ_{c,c'} − δ_c)(δ_{c,c'} − δ_c)ᵀ, of rank C(C − 1) at most.
    - "within": how single samples scatter about the mean of their pair (c, c').
    - "same": the gradients with the samples' own labels.

    Attributes
    ----------
    jacobian : Jacobian
        Of the logits, (n C, P).
    probabilities : torch.Tensor
        (n, C).
    labels : torch.Tensor
        (n,).
    weights : torch.Tensor
        (n, C), the w_{i,c'}.

    Examples
    --------
    >>> x, y = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 2])
    >>> model = torch.nn.Linear(3, 3, bias=False).double()
    >>> G = spectral.GaussNewton(model, torch.nn.CrossEntropyLoss(), [(x, y)])
    >>> parts, v = spectral.class_structure(G), torch.ones(9, dtype=torch.float64)
    >>> bool(torch.allclose(sum(parts.operator(level) @ v for level in LEVELS), G @ v))
    True
    """

    jacobian: Jacobian
    probabilities: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)

    def operator(self, *levels: str) -> Operator:
        """The sum of the named levels as an operator, (P, P); without names G itself.

        Cost: a product is a product with J and one with Jᵀ, two sweeps, as all samples meet in a mean.

        Parameters
        ----------
        *levels : str
            Of "same", "class", "cross", "within".

        Returns
        -------
        Operator
            Jᵀ S J, of which any spectrum can be taken.

        Raises
        ------
        ValueError
            For another name.

        Examples
        --------
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> G = spectral.GaussNewton(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> spectral.class_structure(G).operator("class").shape
        (6, 6)
        """
        if strange := [level for level in levels if level not in LEVELS]:
            raise ValueError(f"{strange} are no levels; use some of {', '.join(LEVELS)}.")
        J = self.jacobian
        A = J.T @ Levels(levels or LEVELS, self.probabilities, self.labels, self.weights) @ J
        A.symmetric = A.nonnegative = True
        return A

    def without(self, *levels: str) -> Operator:
        """G with these levels knocked out: without "class" its outliers are gone, without "class" and "cross" its bumps.

        Cost: as that of `operator`.

        Parameters
        ----------
        *levels : str
            Of "same", "class", "cross", "within", not all four.

        Returns
        -------
        Operator
            (P, P), positive semi-definite.

        Raises
        ------
        ValueError
            For another name, or all of them.

        Examples
        --------
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> G = spectral.GaussNewton(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> spectral.class_structure(G).without("class", "cross").shape
        (6, 6)
        """
        left = tuple(level for level in LEVELS if level not in levels)
        if not left or set(levels) - set(LEVELS):
            raise ValueError(f"{list(levels)} cannot be taken out; use some of {', '.join(LEVELS)}, not all.")
        return self.operator(*left)

    def class_means(self) -> Tensor:
        """√w_c δ_c as columns, (P, C): their outer products add up to the level "class".

        Cost: C products with Jᵀ, one block.

        Returns
        -------
        torch.Tensor
            (P, C); 0 for a class without samples.

        Examples
        --------
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> G = spectral.GaussNewton(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> spectral.class_structure(G).class_means().shape
        torch.Size([6, 2])
        """
        S = Levels(("class",), self.probabilities, self.labels, self.weights)
        C = self.probabilities.shape[1]
        each = torch.eye(C, dtype=S.dtype, device=S.device)[:, None].expand(C, C, C)  # 1 where c is the column's class
        root = S.mass_CC.sum(1).sqrt()
        return self.jacobian.T @ (S.spread(each) * torch.where(root > 0, 1 / root, 0.0))

    def predicted(self) -> Array:
        """The eigenvalues of the level "class", largest first, (C,): where G should have its outliers.

        One of them is small where the class means have little in common: outliers are then C − 1.

        Cost: C products with Jᵀ.

        Returns
        -------
        numpy.ndarray
            (C,), float64.

        Examples
        --------
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> G = spectral.GaussNewton(model, torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> spectral.class_structure(G).predicted()  # of each class: weight 1/4, and |δ|^2 = 1/2
        array([0.125, 0.125])
        """
        M = arrays.double(self.class_means())
        return np.maximum(torch.linalg.eigvalsh(M.T @ M).cpu().numpy()[::-1], 0.0)


def class_structure(G: GaussNewton) -> ClassStructure:
    """Papyan's three levels of a classifier's Gauss-Newton matrix, as operators, and the outliers that class means predict.

    G = G_same + G_class + G_cross + G_within, exactly: see `ClassStructure` for what each is.

    Cost: one forward pass over the data. What is asked later multiplies by the Jacobian of the logits.

    Parameters
    ----------
    G : GaussNewton
        Of a cross entropy with one class label for each sample; weights, ignored targets and label smoothing count as in G.

    Returns
    -------
    ClassStructure
        With `operator`, `without`, `class_means` and `predicted`. Its probabilities are those of now: build it anew after a step
        of training.

    Raises
    ------
    TypeError
        For anything but a GaussNewton.
    ValueError
        For another loss, probabilities as targets, or several targets a sample.

    Notes
    -----
    Memory: n C numbers, three times, and a vector of n C for each column of a product.

    References
    ----------
    - Papyan (2019), Measurements of three-level hierarchical structure in the outliers in the spectrum of deepnet Hessians,
      ICML.
    - Papyan (2020), Traces of class/cross-class structure pervade deep learning spectra, JMLR 21.

    Examples
    --------
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> G = spectral.GaussNewton(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
    >>> spectral.class_structure(G).labels
    tensor([0, 1])
    """
    if type(G) is not GaussNewton:
        raise TypeError(f"{G!r} is no Gauss-Newton matrix; pass spectral.GaussNewton(model, loss, data).")
    hold_whole(G, "class_structure")
    if not G.network.loss.is_cross_entropy:
        raise ValueError(f"loss={G.loss!r} has no classes; class_structure needs torch.nn.CrossEntropyLoss.")
    J = Jacobian.over(G.network, G.options)
    seen = distributed.gather(lambda: _looked(J))
    p, y, mass = (torch.cat([part[i] for part in seen]) for i in range(3))
    p, mass = p.to(J.device, J.dtype), mass.to(J.device, J.dtype)
    return ClassStructure(J, p, y.to(J.device), mass[:, None] * p / G.count)


def _looked(J: Jacobian) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (n, C), labels (n,) and what each sample counts (n,), of this rank's samples, on the CPU."""
    network = J.network
    rows = [(torch.zeros(0, J.outputs), torch.zeros(0, dtype=torch.int64), torch.zeros(0))]  # of a rank without samples
    with network.sweep() as batches, torch.no_grad():
        for _, batch in batches:
            z, y = output_tensor(network.output(batch)), network.loss.target(batch)
            if z.ndim != 2 or y.ndim != 1 or y.is_floating_point():
                raise ValueError(
                    f"logits {tuple(z.shape)} with {y.dtype} targets {tuple(y.shape)} are not one class label for each sample; "
                    "class_structure needs logits (B, C) and integer labels (B,)."
                )
            wide = arrays.double(z)
            mass = network.loss.class_mass(batch, wide if wide.device == z.device else z)
            rows.append((wide.softmax(1), torch.where(mass != 0, y, 0), mass))  # an ignored label may be any number
    p, y, mass = (torch.cat([row[i].cpu() for row in rows]) for i in range(3))
    return p, y, mass
