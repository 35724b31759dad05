"""Networks on a device that is not there: a backend of torch's written in Python, whose tensors the processor holds (`card.py`).

`python device.py [narrow] [all]` runs every operator, and estimators of some, on the device and on the processor, prints each
line that is not the same and ends with their number. Data lie on the processor, as a loader gives them; what mixes devices is
refused. `narrow`: the device has no float64. `all`: every estimator. Nothing is recorded, which such a backend does not live
through.
"""

from __future__ import annotations

import sys
from functools import partial
from unittest import mock

import card
import numpy as np
import scenes
import torch
from torch import nn
from torch.utils import backend_registration

import spectral
from spectral.engine import autotune, linearize
from spectral.experiments.cell import TRUE, Settings, all_cells, run_cell
from spectral.experiments.datasets import digits
from spectral.experiments.models import model_for

NAME = "npu"
NARROW, ALL = ("narrow" in sys.argv), ("all" in sys.argv)
QUIET = {"progress": False}


def unviewed(t, plain=linearize.unviewed):
    """A storage that is set has a device, which a tensor that the processor holds cannot have."""
    return t.clone() if isinstance(t, card.Card) else plain(t)


def numbers(x):
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=float)


def compared(name, run):
    """Whether run(device) gives what run("cpu") gives."""
    due = numbers(run("cpu"))
    try:
        with card.card():
            found = numbers(run(NAME))
    except Exception as problem:
        print(f"{name}: {type(problem).__name__}: {problem}")
        return False
    off = np.abs(found - due).max() / np.abs(due).max()
    if off > (1e-3 if NARROW else 1e-9):
        print(f"{name}: off by {off:.1e}")
        return False
    return True


def stepped(device):
    """A network and an optimizer that has made a step."""
    net = scenes.network().to(device)
    optimizer, (x, y) = torch.optim.Adam(net.parameters()), scenes.data(device)[0]
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    return net, optimizer


def matrix(kind, device, net=None, **options):
    net = scenes.network().to(device) if net is None else net
    return kind(net, nn.CrossEntropyLoss(), scenes.data(), **options)


def jacobian(device):
    return spectral.Jacobian(scenes.network().to(device), scenes.data())


def preconditioned(device):
    net, optimizer = stepped(device)
    return spectral.precondition(matrix(spectral.GaussNewton, device, net), optimizer)


def trained(device):
    """The spectrum of a network of an experiment, which it trains there."""
    settings = Settings(
        seeds=(0,), device=device, dtype=scenes.DTYPE, training={"max_epochs": 2}, problem=partial(digits, train=30, test=10),
        model=partial(model_for, options={"widths": [6]}), conditions=(TRUE,), kinds=("stacked",), outputs=("probs",),
        splits=("train",),
    )  # fmt: skip
    return run_cell(all_cells(settings)[0], settings).spectrum.points()[0]


LABELS = [int(label) for _, y in scenes.data() for label in y]
OTHERS = {
    "diagonal of Gauss-Newton": lambda d: (
        spectral.diagonal(matrix(spectral.GaussNewton, d), method="exact", **QUIET).value
    ),
    "diagonal of EmpiricalFisher": lambda d: (
        spectral.diagonal(matrix(spectral.EmpiricalFisher, d), method="exact", **QUIET).value
    ),
    "norms": lambda d: jacobian(d).squared_norms(),
    "norms, exact": lambda d: jacobian(d).squared_norms(exact=True),
    "exact J J^T": lambda d: spectral.exact(jacobian(d).gram("left"), **QUIET).points()[0],
    "exact J^T J": lambda d: spectral.exact(jacobian(d).gram("right"), **QUIET).points()[0],
    "classes": lambda d: spectral.class_structure(matrix(spectral.GaussNewton, d)).predicted(),
    "alignment": lambda d: spectral.label_alignment(jacobian(d), LABELS, k=2).energy,
    "Adam": lambda d: spectral.top(preconditioned(d), k=2, tol=1e-3, **QUIET).values,
    "differences": lambda d: scenes.product(matrix(spectral.Hessian, d, engine="finite-difference"), d),
    "double backward": lambda d: scenes.product(matrix(spectral.Hessian, d, engine="double-backward"), d),
    "a trained network": lambda d: trained(d),
    "fresh": lambda d: scenes.product(matrix(spectral.GaussNewton, d, engine="fresh"), d),
}


def main() -> int:
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    card.KINDS = (*card.KINDS, NAME)
    if NARROW:
        card.NARROW, scenes.DTYPE = (*card.NARROW, NAME), torch.float32
    cases = {
        name: lambda d, name=name: scenes.product(scenes.operators(d)[name](), d) for name in scenes.operators("cpu")
    }
    cases |= OTHERS
    some = scenes.ESTIMATORS if ALL else ("slq", "trace", "top")
    for estimator in some:
        for name in ("GaussNewton", "Hessian", "Gram") if ALL else ("GaussNewton",):
            if (estimator, name) != ("logdet", "Hessian"):  # which is indefinite
                run = scenes.ESTIMATORS[estimator]
                cases[f"{estimator} of {name}"] = lambda d, run=run, name=name: run(scenes.operators(d)[name]())
    with (
        mock.patch.object(linearize, "unviewed", unviewed),
        mock.patch.object(autotune.Tuned, "_pays", lambda _: False),
    ):
        failed = [name for name, run in cases.items() if not compared(name, run)]
    print(f"{len(cases)} cases, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
