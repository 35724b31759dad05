"""Tests start from one seed, without a screen; doctests see the names that a user has imported; tests of GPUs wait for one."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

import spectral


@pytest.fixture(autouse=True)
def seeded(doctest_namespace):
    doctest_namespace.update(np=np, torch=torch, spectral=spectral)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available() and "SPECTRAL_TEST_GPU" not in os.environ:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
