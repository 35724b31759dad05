"""The checksum is its formula, whatever lies in memory how, and sees every small change."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

import spectral.checksum as of_tensors
from spectral import arrays
from spectral.checksum import checksum_of


def by_its_formula(*xs):
    """The hash as `checksum_of`'s docstring defines it, from the bytes, residue by residue."""
    names, blocks, small = [], [], {}
    for x in xs:
        names.append(f"{x.dtype} {tuple(x.shape)}")
        content = bytes(x.contiguous().view(-1).view(torch.uint8).tolist()) if x.numel() else b""
        if len(content) > of_tensors.SMALL:
            blocks.append(content)
        else:
            small[x.dtype] = small.get(x.dtype, b"") + content
    digest = hashlib.sha256(";".join(names).encode())
    for content in (*blocks, *small.values()):
        words = np.frombuffer(content + bytes(-len(content) % 8), dtype=np.uint64)
        for piece in (words[i : i + of_tensors.PIECE] for i in range(0, len(words), of_tensors.PIECE)):
            if len(piece) <= of_tensors.FEW:
                digest.update(piece.tobytes())
                continue
            pair = next(pair for pair in of_tensors.PAIRS if pair[0] * pair[1] >= len(piece))
            for C in pair:
                digest.update(np.array([piece[r::C].sum() for r in range(C)]).tobytes())
    return digest.hexdigest()[:32]


@pytest.fixture
def tiny(monkeypatch):
    """Pieces of 15 and 1 147 words, so that small tensors have several."""
    for name, value in {"FEW": 4, "PAIRS": ((3, 5), (31, 37)), "PIECE": 1147, "SMALL": 64}.items():
        monkeypatch.setattr(of_tensors, name, value)


SIZES = (1, 3, 4, 5, 15, 16, 600, 1147, 1148, 2 * 1147, 40 * 1147 + 7)


def test_a_checksum_is_the_hash_of_the_sums_over_residues(tiny, monkeypatch):
    some = [torch.randn(n, dtype=torch.float64) for n in SIZES]
    some += [torch.randn(n).to(torch.bfloat16) for n in SIZES] + [torch.randn(9, 7) > 0, torch.zeros(0, 3)]
    want = [by_its_formula(x) for x in some]
    assert [checksum_of(x) for x in some] == want and len(set(want)) == len(want)
    assert checksum_of(*some) == by_its_formula(*some)
    monkeypatch.setattr(arrays, "on_cuda", lambda device: True)  # many pieces at a time, as on a GPU
    assert [checksum_of(x) for x in some] == want


def test_a_checksum_does_not_depend_on_how_a_tensor_lies_in_memory(tiny):
    base = torch.randn(70, 90)
    for x in (base.T, base[:, ::3], base[1:, 1:], base.view(-1)[1:], base.expand(3, 70, 90), base[0, 0], base.view(7, 10, 90),
              base[:, ::3][3, :1], base[:, 3:4], base.view(-1)[7:8]):  # fmt: skip
        assert checksum_of(x) == checksum_of(x.clone(memory_format=torch.contiguous_format))
    z = torch.randn(40, 30, dtype=torch.complex128)
    assert checksum_of(z.conj()) == checksum_of(z.conj().resolve_conj()) != checksum_of(z)
    assert checksum_of(z.conj().imag) == checksum_of(z.conj().imag.clone())


def test_every_change_of_up_to_three_words_is_seen(tiny):
    """Of 15 words, sets of them and the changes that cancel most easily: top bits, and what sums to 0."""
    words = torch.randint(-(2**62), 2**62, (15,))
    before, top = checksum_of(words), -(2**63)
    triples = list(itertools.combinations(range(15), 3))[::4]
    for places in (*itertools.combinations(range(15), 1), *itertools.combinations(range(15), 2), *triples):
        for changes in ((top,) * 3, (1, -1, 1), (2**62, 2**62, top), (7, -5, -2)):
            other = words.clone()
            for place, change in zip(places, changes, strict=False):
                other[place] += change
            assert checksum_of(other) != before
            if len(places) > 1:  # words that change places
                other = words.clone()
                other[list(places)] = words[[*places[1:], places[0]]]
                assert checksum_of(other) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_one_flipped_bit_among_millions_is_seen(dtype):
    x = torch.zeros(1_200_001, dtype=dtype) if dtype == torch.bool else torch.randn(1_200_001).to(dtype)
    before, octets = checksum_of(x), x.view(torch.uint8)
    seen = {before}
    for place in (0, 1, len(octets) // 2, len(octets) - 1, *np.random.default_rng(0).integers(len(octets), size=12)):
        bit = 1 if dtype == torch.bool else 1 << int(place) % 8
        octets[place] ^= bit
        seen.add(checksum_of(x))
        octets[place] ^= bit
    assert checksum_of(x) == before and len(seen) == 17


def test_order_sign_shape_and_dtype_count():
    x = torch.randn(500, 300, dtype=torch.float64)
    others = [-x, x.flip(0), x.flip(1), x.T, x.view(-1), 2 * x, x.abs(), x.view(torch.int64), x[1:], x.roll(1, 0)]
    assert len({checksum_of(other) for other in (x, *others)}) == len(others) + 1
    a, b = torch.ones(3), torch.zeros(2)
    assert len({checksum_of(*xs) for xs in ((a, b), (b, a), (a,), (a, b, b), ())}) == 5
    assert checksum_of(torch.tensor([0.0])) != checksum_of(torch.tensor([-0.0]))
