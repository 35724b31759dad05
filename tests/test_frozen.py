"""Results are those of before the house was rebuilt (see `frozen`); another machine's libraries may round the last bits."""

import json

import numpy as np
import pytest
from frozen import FILE, SEEDS, floats, results

THEN = json.loads(FILE.read_text())


def flat(value):
    return (
        np.concatenate([flat(v) for v in value])
        if isinstance(value, list) and value
        else np.atleast_1d(value).astype(float)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_results_of_a_seed_are_what_they_were(seed):
    now = results(seed)
    assert now.keys() == THEN[str(seed)].keys()
    for name, value in now.items():
        then = flat(floats(THEN[str(seed)][name]))
        assert flat(value) == pytest.approx(then, rel=1e-6, abs=1e-7 * np.abs(then).max()), name
