"""The reference: every public name has its place in it, and a docstring with the sections that apply."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectral
from spectral import analysis, watch
from spectral.estimators import functionals
from spectral.operators.linear_map import LinearMap
from spectral.results import Measured

PAGES = sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.rst"))
CLASSES = [
    spectral.Operator, spectral.Jacobian, spectral.Hessian, spectral.GaussNewton, spectral.Fisher, spectral.EmpiricalFisher,
    spectral.operators.Gram, spectral.Spectrum, spectral.Estimate, spectral.Band, spectral.Density, spectral.Atoms,
    spectral.Eigenpairs, spectral.SingularTriplets, spectral.Solution, spectral.Product, spectral.Plan,
    functionals.NegativeMass, analysis.Alignment, analysis.MarchenkoPastur, analysis.Outliers, analysis.PowerLaw,
    spectral.LowRankPlusDiagonal, spectral.LayerTable, spectral.Watcher, watch.Reading, watch.Skipped,
    analysis.ClassStructure, analysis.Lyapunov, analysis.LogSingularValues, analysis.Comparison,
]  # fmt: skip
NETWORKS = {
    kind.__name__: kind
    for kind in (spectral.Jacobian, spectral.Hessian, spectral.GaussNewton, spectral.Fisher, spectral.EmpiricalFisher)
}
OWN = {  # keywords and fields that the named operators describe in words of their own, and why
    "loss": {"Jacobian": "for of='loss' alone", "Fisher": "names a distribution: no callable"},
    "engine": {"Jacobian": "says what 'auto' does at once", "Hessian": "its ways are other ones"},
    "layout": {"Jacobian": "of rows and columns"},
    "statistics": dict.fromkeys(("Jacobian", "EmpiricalFisher"), "says where it is refused"),
    "preflight": {"Hessian": "other tests", "GaussNewton": "tests of its loss beside"},
    "TypeError": {"Jacobian": "no loss"},
    "ValueError": {"Jacobian": "no targets", "GaussNewton": "its loss", "Fisher": "its draws", "EmpiricalFisher": "its loss"},
}  # fmt: skip
CONTINUED = [
    *((name, "statistics") for name in ("Jacobian", "EmpiricalFisher")),
    *((name, "ValueError") for name in ("GaussNewton", "Fisher", "EmpiricalFisher")),
]


def methods(kind: type) -> dict[str, Any]:
    """Public methods that a class itself defines, each under its own name: no aliases, no properties."""
    found = {}
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and function.__name__ == name and not name.startswith("_"):
            found[f"{kind.__name__}.{name}"] = function
    return found


FUNCTIONS = {name: value for name in spectral.__all__ if inspect.isfunction(value := getattr(spectral, name))}
FUNCTIONS |= {
    "cohens_d": analysis.cohens_d,
    "describe_metric": analysis.describe_metric,
    "log_singular_values": analysis.log_singular_values,
}
PUBLIC: dict[str, Any] = {**FUNCTIONS, **{kind.__name__: kind for kind in CLASSES}}
for kind in (*CLASSES, LinearMap, Measured):  # the latter two are bases, whose methods those above have
    PUBLIC |= methods(kind)


def sections(thing: Any) -> dict[str, str]:
    """{title: text} of a numpydoc docstring; what stands before the first title is under ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(text: str) -> list[str]:
    """The names that a section of parameters describes, `lower, upper : float` as two."""
    entries = re.findall(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) : .+\n    \S", text, flags=re.MULTILINE)
    return [name.lstrip("*") for entry in entries for name in entry.split(", ")]


def missing(name: str) -> list[str]:
    """What a docstring lacks, as sentences."""
    thing, found = PUBLIC[name], sections(PUBLIC[name])
    parameters = [p for p in inspect.signature(thing).parameters if p != "self" and p != "cls"]
    told = described(
        found.get("Parameters", "") + "\n" + (found.get("Attributes", "") if isinstance(thing, type) else "")
    )
    lacks = [f"{parameter} is not described" for parameter in parameters if parameter not in told]
    if not isinstance(thing, type):
        lacks += [f"{other} is no parameter" for other in told if other not in parameters]
        if inspect.signature(thing).return_annotation not in ("None", None) and not found.get("Returns"):
            lacks.append("no Returns")
        if re.search(r"^\s+raise \w", inspect.getsource(thing), flags=re.MULTILINE) and not found.get("Raises"):
            lacks.append("no Raises")
    if ">>> " not in found.get("Examples", ""):
        lacks.append("no Examples with a doctest")
    if re.search(r"\w -{3,}", inspect.getdoc(thing) or ""):
        lacks.append("a title that has run into its section")
    if not re.match(r"\S.{10,}?[.:;](\n\n|\Z| )", found[""], flags=re.DOTALL):
        lacks.append("no sentence to begin with")
    return lacks


def entries(thing: Any) -> dict[str, str]:
    """{name: type and text} of what a docstring's lists describe: keywords, fields and errors."""
    found = sections(thing)
    lists = "".join(found.get(title, "") for title in ("Parameters", "Attributes", "Raises"))
    each = re.findall(r"^(\w+)(?: : (.+))?\n((?:    .+\n?)+)", lists, flags=re.MULTILINE)
    return {name: " ".join(f"{kind}\n{text}".split()) for name, kind, text in each}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_docstring_has_the_sections_that_apply(name):
    assert missing(name) == []


def test_what_multiplies_states_its_cost():
    """Functions of the contract take products or none: a docstring says which."""
    for name, function in FUNCTIONS.items():
        if name in spectral.__all__:
            assert "Cost:" in sections(function)[""], name


def test_every_public_name_is_on_a_page_of_the_reference():
    text = "\n".join(page.read_text() for page in PAGES)
    shown = {
        target.rpartition(".")[2]
        for target in re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", text, flags=re.MULTILINE)
    }
    assert sorted({*spectral.__all__, *(kind.__name__ for kind in CLASSES)} - shown - {"__version__"}) == []


def test_a_page_of_the_reference_names_what_there_is():
    """`make docs` needs sphinx, which no other test does: a name that has moved is found here."""
    kinds = {"autofunction": inspect.isfunction, "autoclass": inspect.isclass}
    for page in PAGES:
        module = ""
        for kind, name in re.findall(r"^\.\. (currentmodule|auto(?:function|class)):: (\S+)$", page.read_text(), re.M):
            if kind == "currentmodule":
                module = name
            else:
                where, _, last = (name if name.startswith("spectral.") else f"{module}.{name}").rpartition(".")
                assert kinds[kind](getattr(importlib.import_module(where), last, None)), f"{page.name}: {where}.{last}"


NET, DATA = torch.nn.Linear(2, 2), [(torch.ones(4, 2), torch.ones(4, 2))]
OPERANDS = {  # of what has a keyword that is True or False
    **dict.fromkeys(("GaussNewton", "Hessian", "Fisher", "EmpiricalFisher"), (NET, torch.nn.MSELoss(), DATA)),
    **dict.fromkeys(("Jacobian", "layers"), (NET, DATA)),
    **dict.fromkeys(("diagonal", "exact", "kpm", "slq", "trace"), (np.eye(4),)),
    **dict.fromkeys(("svd", "top"), (np.eye(4), 1)),
    **dict.fromkeys(("label_alignment", "solve", "spectrum_of"), (np.eye(4), np.arange(4.0))),
    "funm": (np.eye(4), np.exp, np.ones(4)),
    "block_gap": (np.eye(4), [2, 2]),
}
SWITCHES = [
    (name, keyword)
    for name, what in vars(spectral).items()
    if name in spectral.__all__ and callable(what) and (name[0].islower() or issubclass(what, LinearMap))
    for keyword, parameter in inspect.signature(what).parameters.items()
    if parameter.annotation in ("bool", "bool | None") and name != "Operator"
]


@pytest.mark.parametrize(("name", "keyword"), SWITCHES)
def test_a_word_turns_no_switch_on(name, keyword):
    with pytest.raises(ValueError, match=f"{keyword}='no' is not known; use one of True, False"):
        getattr(spectral, name)(*OPERANDS[name], **{keyword: "no"})


ON = spectral.GaussNewton(NET, torch.nn.MSELoss(), DATA)
SPECTRUM = spectral.slq(np.diag(np.arange(1.0, 9)), probes=2, steps=4, deflate=False)
NUMBERS = [
    (name, keyword, operands)
    for operands, names in (
        ((np.eye(4),), ("inverse", "logdet", "negative_mass", "numerical_rank", "trace")),
        ((np.eye(4), 1), ("low_rank_plus_diagonal", "svd", "top")),
        ((np.eye(4), np.arange(4.0)), ("solve",)),
        ((np.eye(4), np.exp, np.ones(4)), ("funm",)),
        ((ON,), ("critical_sharpness",)),
        ((SPECTRUM,), ("jackson", "marchenko_pastur", "power_law")),
    )
    for name in names
    for keyword, parameter in inspect.signature(getattr(spectral, name)).parameters.items()
    if parameter.annotation in ("float", "float | None")
]


@pytest.mark.parametrize(("name", "keyword", "operands"), NUMBERS)
def test_what_is_no_number_is_told_in_one_sentence(name, keyword, operands):
    for strange in ("much", True, float("nan"), [0.5]):
        with pytest.raises(ValueError, match=rf"^{keyword}=.+ is no .+; use .+\.$"):
            getattr(spectral, name)(*operands, **{keyword: strange})


def test_operators_of_networks_describe_a_shared_keyword_in_the_same_words():
    told = {name: entries(kind) for name, kind in NETWORKS.items()}
    assert {"model", "data", "params", "memory", "count", "TypeError"} <= set(told["Hessian"])
    shared = {}
    for keyword in sorted({keyword for found in told.values() for keyword in found}):
        texts = {name: found[keyword] for name, found in told.items() if keyword in found}
        others = {text for name, text in texts.items() if name not in OWN.get(keyword, {})}
        assert len(others) == 1, f"{keyword}: {others}"
        (shared[keyword],) = others
        for name in OWN.get(keyword, {}):
            assert texts[name] not in others, f"{keyword} of {name} is as elsewhere: it has no words of its own"
    for name, keyword in CONTINUED:  # the common words first, then its own
        assert told[name][keyword].startswith(shared[keyword]), f"{keyword} of {name}"


def test_operators_of_networks_share_what_their_notes_say_of_all():
    notes = {name: " ".join(sections(kind)["Notes"].split()) for name, kind in NETWORKS.items()}
    losses = {name: text for name, text in notes.items() if name != "Jacobian"}
    for sentence, texts in (
        (r"In an initialised torch\.distributed group, [^.]*\.", notes),
        (r"pay for it and `memory` holds it; [^.]*\.", notes),
        (r'"compiled" is tried only where [^.]*\.', notes),
        (r"Memory: the activations of a batch, [^.]*\.", notes),
        (r"The mean is torch's own .* count as in torch\.", losses),
        (r'engine="auto" takes .* `spectral\.engine\.autotune`\.', {n: t for n, t in losses.items() if n != "Hessian"}),
    ):
        assert len({tuple(re.findall(sentence, text)) for text in texts.values()}) == 1, sentence
        assert all(len(re.findall(sentence, text)) == 1 for text in texts.values()), sentence
