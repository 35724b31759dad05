"""What is written for people and is no code: the prose of a module lies beside it, in a YAML file of its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from omegaconf import OmegaConf

from spectral.cards import counted, with_error
from spectral.results import rounded

ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined)
ENVIRONMENT.globals |= {"counted": counted, "finite": math.isfinite, "with_error": with_error}


def written(value: Any, spec: str) -> str:
    """`format`, with no exponent for numbers of five digits or fewer, as `with_error` writes them.

    >>> [written(x, ".3g") for x in (1043.2, 4.7e-9, 0.5)], written(1234, ",")
    (['1,040', '4.7e-09', '0.5'], '1,234')
    """
    text = format(value, spec)
    return f"{float(text):,.0f}" if text.endswith(("e+03", "e+04")) else text


ENVIRONMENT.filters |= {"fmt": written, "rounded": rounded}


def prose(module: str) -> Any:
    """The texts of a module, of which `module` is the `__file__`, as they stand in its YAML file."""
    return OmegaConf.to_container(OmegaConf.load(Path(module).with_suffix(".yaml")))


def say(text: str, **facts: Any) -> str:
    """A text with its facts: a template of jinja2, in which `fmt` writes numbers; a fact that is not given is an error.

    >>> say("{{ counted(n, 'matrix') if n == 1 else 'more' }}{% if x > 1 %}, {{ x|fmt('.2g') }}{% endif %}", n=1, x=1.5)
    '1 matrix, 1.5'
    """
    return " ".join(_template(text).render(facts).split())


def told(texts: Sequence[str], **facts: Any) -> list[str]:
    """Of several texts those that say something of the facts: the others come out empty."""
    return [said for text in texts if (said := say(text, **facts))]


def filled(texts: Mapping[str, str], **facts: Any) -> dict[str, str]:
    """One row of a table by its columns, titles and entries alike."""
    return {say(title, **facts): say(text, **facts) for title, text in texts.items()}


@lru_cache
def _template(text: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(text)
