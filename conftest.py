"""Tests start from one seed, without a screen; doctests see the names that a user has imported."""

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
