"""Entry j of probe i is a function of (seed, i, j) alone, and the entries have the moments of their law."""

import random

import numpy as np
import pytest
import torch
from oracles import random_states

from spectral.probes import SEGMENT, probe


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize(
    "start, n", [(0, 10), (3, 0), (5, 1), (SEGMENT - 3, 6), (SEGMENT, 4), (SEGMENT - 1, SEGMENT + 2)]
)
def test_slice_is_the_slice_of_the_whole(kind, start, n):
    whole = probe(7, 2, 3 * SEGMENT, kind=kind)
    assert torch.equal(probe(7, 2, n, start=start, kind=kind), whole[start : start + n])


def test_seeds_indices_and_kinds_are_independent():
    n = 20_000
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**64 - 1, 0), (2**32, 5)]
    Z = torch.stack([probe(seed, i, n, kind=kind) for seed, i in keys for kind in ("gaussian", "rademacher")])
    correlation = Z @ Z.T / n - torch.eye(len(Z), dtype=torch.float64)
    assert float(correlation.fill_diagonal_(0).abs().max()) < 4.5 / n**0.5
    segments = probe(0, 0, 2 * SEGMENT).view(2, SEGMENT)
    assert abs(float(segments[0] @ segments[1])) / SEGMENT < 4.5 / SEGMENT**0.5


def test_moments_are_those_of_the_law():
    n = 200_000
    g, r = probe(3, 0, n), probe(3, 0, n, kind="rademacher")
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((g**power).mean()) - moment) < 4.5 * (variance / n) ** 0.5
    assert set(r.tolist()) == {-1.0, 1.0} and abs(float(r.mean())) < 4.5 / n**0.5


def test_dtype_rounds_the_same_numbers():
    exact = probe(0, 0, 100)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(probe(0, 0, 100, dtype=dtype), exact.to(dtype))


def test_global_generators_are_untouched_and_unread():
    before = random_states()
    first = probe(1, 1, 50)
    assert random_states() == before
    torch.manual_seed(9), np.random.seed(9), random.seed(9)  # noqa: NPY002
    assert torch.equal(probe(1, 1, 50), first)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "0", None])
def test_bad_seed_is_one_sentence(seed):
    with pytest.raises(ValueError, match=r"is no seed; use an integer from 0 to"):
        probe(seed, 0, 3)
    assert probe(np.int64(4), 0, 3).equal(probe(4, 0, 3))


def test_bad_kind_is_one_sentence():
    with pytest.raises(ValueError, match=r"kind='cauchy'.*gaussian, rademacher, uniform"):
        probe(0, 0, 3, kind="cauchy")


def test_uniform_probe_is_uniform_on_the_unit_interval():
    """Mean 1/2 and variance 1/12 to five standard errors, sd(mean) = 1/sqrt(12 n) and sd(variance) = 1/sqrt(180 n)."""
    n = 200_000
    u = probe(3, 1, n, kind="uniform")
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 1 / 2) < 5 / (12 * n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 5 / (180 * n) ** 0.5
