"""Networks, weights and data of a user: what may run, what is loaded, what is said where something is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_run import call, here, results  # noqa: F401  (a fixture)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectral
from spectral.app import configuration
from spectral.app.settings import trust_of
from spectral.experiments import own, pretrained
from spectral.experiments.datasets import Problem
from spectral.experiments.weights import load_weights, weights_of
from spectral.schema import Broken, Mismatch
from spectral.spectrum import Spectrum

EXAMPLE = Path(__file__).parents[1] / "examples" / "own"
NET = (
    "from torch import nn\n\ndef make(width=5):\n"
    "    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))\n"
)
BATCHES = (
    "import torch\n\ndef make():\n    g = torch.Generator().manual_seed(0)\n    x = torch.randn(12, 3, generator=g)\n"
    "    return list(zip(x.split(5), (torch.arange(12) % 2).split(5)))\n"
)


def trusted(files) -> dict[str, str]:
    """What a run trusts that lists these files."""
    return {str(Path(file).resolve()): own.digest(file) for file in files}


def write(folder: Path, **files: str) -> dict[str, str]:
    """Files NAME.py, all of them trusted."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return trusted(str(folder / f"{name}.py") for name in files)


def made(path: Path, trust: dict[str, str], seed: int = 0, **options) -> nn.Module:
    return own.model(None, f"{path}:make", seed=seed, options=options, trust=trust)  # type: ignore[arg-type]


# What may run ---------------------------------------------------------------------------------------------------------
def test_a_file_runs_only_if_it_is_listed_wherever_its_name_leads(tmp_path):
    trust = write(tmp_path, net=NET)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.py").symlink_to(tmp_path / "net.py")
    for path in (tmp_path / "net.py", tmp_path / "link.py", tmp_path / "sub" / ".." / "net.py"):
        assert own.is_trusted(str(path), trust) and isinstance(made(path, trust), nn.Module)
    marked = "from pathlib import Path\nPath(__file__).with_name('hit').touch()\n" + NET
    (tmp_path / "sub" / "net.py").write_text(marked)
    (tmp_path / "sub" / "link.py").symlink_to(tmp_path / "sub" / "net.py")
    for path in (tmp_path / "sub" / "net.py", tmp_path / "sub" / "link.py"):
        assert not own.is_trusted(str(path), trust)
        with pytest.raises(ValueError, match=r"must be allowed by name: add 'trust=\["):
            made(path, trust)
    assert not list(tmp_path.rglob("hit"))


def test_a_file_that_has_changed_since_it_was_hashed_does_not_run(tmp_path):
    trust = write(tmp_path, net=NET)
    (tmp_path / "net.py").write_text(NET + "raise SystemExit\n")
    with pytest.raises(ValueError, match="has changed since this run began"):
        made(tmp_path / "net.py", trust)


def test_what_is_run_is_the_source_and_no_compilation_of_it(tmp_path):
    """A .pyc beside it, newer and of another program, is not looked at; none is left."""
    import py_compile

    trust = write(tmp_path, net="from parts import width\n" + NET.replace("=5", "=width"), parts="width = 7\n")
    (tmp_path / "other.py").write_text("width = 9\n")
    cached = Path(importlib_cache(tmp_path / "parts.py"))
    cached.parent.mkdir()
    py_compile.compile(
        str(tmp_path / "other.py"), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert made(tmp_path / "net.py", trust)[0].out_features == 7
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def importlib_cache(path: Path) -> str:
    return importlib.util.cache_from_source(str(path))


def test_a_trusted_file_imports_what_is_listed_and_nothing_else_beside_it(tmp_path):
    files = {"net": "from own_parts import width\n" + NET.replace("=5", "=width"), "own_parts": "width = 7\n"}
    trust = write(tmp_path, **files)
    assert made(tmp_path / "net.py", trust)[0].out_features == 7
    assert "own_parts" not in sys.modules and not any("Trusted" in type(finder).__name__ for finder in sys.meta_path)
    alone = trusted([str(tmp_path / "net.py")])
    with pytest.raises(ValueError, match=r"own_parts\.py is imported and not trusted; add it to trust"):
        made(tmp_path / "net.py", alone)


PARTS = {"__init__": "", "inner/__init__": "from .sizes import width\n", "inner/sizes": "width = 7\n"}


@pytest.mark.parametrize("way", ["files", "folder", "no __init__"])
def test_packages_are_imported_if_all_that_runs_of_them_is_listed(tmp_path, monkeypatch, way):
    """A package beside a trusted file ran unlisted where it lay on sys.path, and could not be had where it did not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts" / "inner").mkdir(parents=True)
    trust = write(tmp_path, net="from own_parts.inner import width\n" + NET.replace("=5", "=width"))
    files = write(tmp_path / "own_parts", **(PARTS if way != "no __init__" else dict(list(PARTS.items())[1:])))
    for file in files if way != "folder" else ():
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(ValueError, match=r"own_parts.*\.py is imported and not trusted; add it to trust"):
            made(tmp_path / "net.py", {k: v for k, v in {**trust, **files}.items() if k != file})
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"own_parts.* is imported and not trusted; add it to trust"):
        made(tmp_path / "net.py", trust)
    listed = ["net.py", "own_parts"] if way == "folder" else ["net.py", *files]
    config = {"model": {}, "data": {}, "trust": listed}
    assert made(Path("net.py"), trust_of({**config, "files": own.read_by(config)}))[0].out_features == 7
    assert not any(name.startswith("own_parts") for name in sys.modules)


def test_what_is_imported_later_is_what_is_listed_too(tmp_path, monkeypatch):
    """An import inside of forward ran whatever lay where the command was started, or found nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    late = NET + "\nclass Net(nn.Linear):\n    def forward(self, x):\n        import own_late\n        return x\n"
    trust = write(tmp_path, net=late, own_late="")
    alone = {file: sha for file, sha in trust.items() if "own_late" not in file}
    for given, said in ((trust, ""), (alone, r"^own_late\.py is imported and not trusted")):
        model = own.model(None, "net.py:Net", options={"in_features": 1, "out_features": 1}, trust=given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext(), own.told(given):
            model(torch.ones(1))
        # what a worker raises comes with its traceback
        with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext(), own.told(given):
            list(DataLoader([1.0], num_workers=1, collate_fn=model, multiprocessing_context="fork"))
    assert "own_late" not in sys.modules


CURSES = "import curses\nassert hasattr(curses, 'initscr')\n"  # an installed module that nothing here has imported
PROBE = (
    "import importlib.util\nimportlib.util.find_spec('wandb')\ntry:\n    import wandb\nexcept ImportError:\n    pass\n"
)
LAYERS = "from torch import nn\n\nclass Layer(nn.Linear):\n    pass\n"
LATE = """

class Net(own_layers.Layer):
    def forward(self, x):
        from own_layers import Layer
        assert isinstance(self, Layer)
        return x

def make():
    return Net(3, 2)
"""


@pytest.mark.parametrize(
    ("files", "listed"),
    [
        ({"net": "import models.curses\n" + NET, "models/__init__": "", "models/curses": CURSES}, ["models"]),
        ({"net": "import models.curses\n" + NET, "models/curses": CURSES}, ["models"]),
        (
            {"net": "import models\n" + CURSES + NET, "models/__init__": "", "models/curses/__init__": "1 / 0"},
            ["models"],
        ),
        (
            {
                "models/net": "import own_layers\n" + NET,
                "models/own_layers": "",
                "models/__init__": "",
                "own_layers/data": "",
            },
            ["models"],
        ),
        ({"net": CURSES + "import curses.ascii\n" + NET, "curses/ascii": "1 / 0"}, []),
        ({"net": PROBE + NET, "wandb/run/code": ""}, []),
        ({"net": "import own_layers\n" + NET.split("def")[0] + LATE, "own_layers": LAYERS}, ["own_layers.py"]),
        ({"net": "import own_link.layers\n" + NET, "own_real/layers": LAYERS}, ["own_link"]),
    ],
    ids=[
        "member",
        "member without init",
        "of a library",
        "script in a package",
        "submodule",
        "optional",
        "late",
        "link",
    ],
)
def test_what_is_listed_takes_no_installed_modules_place_and_is_imported_once(tmp_path, monkeypatch, files, listed):
    """models/curses.py was what `import curses` of anybody gave; a folder wandb/ ended the run of who tries to import it; what
    forward imported was another module than that at the head of the file."""
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path, **files)
    (tmp_path / "own_link").symlink_to(tmp_path / "own_real")
    (net,) = (name for name in files if name.endswith("net"))
    config = {"model": {}, "data": {}, "trust": [f"{net}.py", *listed]}
    trust, before = trust_of({**config, "files": own.read_by(config)}), set(sys.modules)
    try:
        with own.told(trust):
            assert made(Path(f"{net}.py"), trust)(torch.ones(1, 3)) is not None
    finally:
        for name in {name for name in set(sys.modules) - before if name.startswith("curses")}:
            del sys.modules[name]


def test_a_network_is_the_same_whether_its_imports_ran_before(tmp_path):
    trust = write(tmp_path, net="import own_drawn\n" + NET, own_drawn="import torch\ntorch.rand(1)\n")
    with own.told(trust):
        first, second = (made(tmp_path / "net.py", trust) for _ in range(2))
    assert torch.equal(first[0].weight, second[0].weight)


def test_few_files_are_looked_for_where_many_are_listed(tmp_path, monkeypatch):
    """Each import of an installed package's modules looked for them beside each of 600 files: minutes."""
    monkeypatch.chdir(tmp_path)
    with own.told({f"{tmp_path}/d{i}/a.py": "" for i in range(600)}), monkeypatch.context() as watched:
        watched.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} was looked for"))
        assert importlib.util.find_spec("torch.nn.none") is None


FAILURES = {
    "no function": ("def mke():\n    pass\n", "net.py has no function or class make; it has mke"),
    "no function at all": ("make = 3\n", "net.py has no function or class make; it has none"),
    "another class": ("class Net:\n    pass\n", "net.py has no function or class make; it has Net"),
    "raises": (
        "def make():\n    x = 1\n    return x / 0\n",
        "net.py, line 3 failed with ZeroDivisionError: division by zero",
    ),
    "misses a key": ("def make():\n    return {}['image']\n", "net.py, line 2 failed with KeyError: 'image'; mend"),
    "raises while read": (
        "\nimport nowhere_at_all\n",
        "net.py, line 2 failed with ModuleNotFoundError: No module named 'nowhere",
    ),
    "does not parse": ("def make(:\n", "net.py, line 1 failed with SyntaxError"),
    "leaves": ("import sys\nsys.exit(3)\n", "net.py, line 2 failed with SystemExit: 3"),
    "raises deep inside": (
        "import torch\ndef make():\n    return torch.zeros(2) @ torch.zeros(3)\n",
        "net.py, line 3 failed with RuntimeError: inconsistent tensor size",
    ),
    "no module": ("def make():\n    return {}\n", "returned a dict; it must return a torch.nn.Module"),
    "options": (
        "def make(depth):\n    pass\n",
        "cannot be called with model.options={}: missing a required argument: 'depth'",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_a_file_does_wrong_is_one_sentence_with_its_line(tmp_path, name):
    text, said = FAILURES[name]
    trust = write(tmp_path, net=text)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        made(tmp_path / "net.py", trust)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_what_a_function_draws_depends_on_the_seed_and_leaves_the_generators_as_they_were(tmp_path):
    trust = write(
        tmp_path, net="import random\nimport numpy as np\n" + NET + "    \n" + "random.random(), np.random.rand()\n"
    )
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (made(tmp_path / "net.py", trust, seed)[0].weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


# Weights --------------------------------------------------------------------------------------------------------------
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def net(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def shards(state: dict[str, torch.Tensor], folder: Path) -> Path:
    """Two files and their index, as Hugging Face writes them."""
    folder.mkdir()
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own_names in parts.items():
        save_file({name: state[name] for name in own_names}, folder / file)
    index = {"weight_map": {name: file for file, own_names in parts.items() for name in own_names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


WAYS = {
    "safetensors": (lambda s, f: save_file(s, f / "w.safetensors") or f / "w.safetensors", "9 tensors"),
    "shards": (lambda s, f: shards(s, f / "w"), "9 tensors"),
    "index": (lambda s, f: shards(s, f / "w") / "model.safetensors.index.json", "9 tensors"),
    "torch": (lambda s, f: torch.save(s, f / "w.pt") or f / "w.pt", "9 tensors"),
    "torch, legacy": (lambda s, f: torch.save(s, f / "w.pt", _use_new_zipfile_serialization=False) or f / "w.pt", "9 ten"),
    "state_dict": (lambda s, f: torch.save({"epoch": 3, "state_dict": s}, f / "w.ckpt") or f / "w.ckpt", "under 'state_dict'"),
    "model": (lambda s, f: torch.save({"optimizer": {}, "model": s}, f / "w.pt") or f / "w.pt", "under 'model'"),
    "DataParallel": (
        lambda s, f: torch.save({f"module.{k}": v for k, v in s.items()}, f / "w.pt") or f / "w.pt",
        "names without 'module.'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_weights_of_every_kind_of_file_make_the_network_that_was_saved(tmp_path, way):
    save, said = WAYS[way]
    first, second = net(), net()
    first[1].running_mean.normal_()
    path = save(dict(first.state_dict()), tmp_path)
    assert said in load_weights(second, path)
    x = torch.randn(4, 3)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_a_tied_weight_may_stand_once(tmp_path):
    first, second = Tied(), Tied()
    save_file({"embed.weight": first.embed.weight.detach()}, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert torch.equal(second.head.weight, first.head.weight)


def test_a_wider_dtype_takes_a_narrower_one_exactly_and_says_so_and_none_is_rounded(tmp_path):
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in net().state_dict().items()},
        tmp_path / "h.safetensors",
    )
    assert "float16 as float32" in load_weights(net(), tmp_path / "h.safetensors")
    with pytest.raises(ValueError, match=r"0\.bias in float16, which the model's bfloat16 cannot hold without loss"):
        load_weights(net().bfloat16(), tmp_path / "h.safetensors")


WRONG = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "2.bias"}, "it lacks 2.bias; give the weights"),
    "unexpected": (lambda s: {**s, "3.weight": torch.zeros(1)}, "it has, which the model has not, 3.weight; give"),
    "both": (
        lambda s: {f"net.{k}": v for k, v in s.items()},
        "it lacks 0.weight and 8 more, and has, which the model has not, net",
    ),
    "shape": (lambda s: dict(net(6).state_dict()), "0.bias is (6,), and the model's is (5,)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_of_another_network_are_refused_with_the_first_that_does_not_fit(tmp_path, name):
    change, said = WRONG[name]
    save_file(change(dict(net().state_dict())), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=re.escape(said)):
        load_weights(net(), tmp_path / "w.safetensors", "net.py:make")


class Touches:
    """What a pickle may do when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_of_weights_runs_nothing(tmp_path):
    torch.save(net(), tmp_path / "whole.pt")
    torch.save({"state_dict": net().state_dict(), "more": Touches(str(tmp_path / "hit"))}, tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Touches(str(tmp_path / "hit"))))
    for file in ("whole.pt", "evil.pt", "plain.pkl"):
        with pytest.raises(ValueError, match="holds more than tensors"):
            load_weights(net(), tmp_path / file)
    assert not (tmp_path / "hit").exists()
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_weights(net(), tmp_path / "none.pt")


def test_an_index_leads_to_no_file_elsewhere(tmp_path):
    folder = shards(dict(net().state_dict()), tmp_path / "w")
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for file in ("../other.safetensors", "/etc/passwd", "sub/x.safetensors"):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "2.bias": file}}))
        with pytest.raises(ValueError, match="which is no file beside it"):
            load_weights(net(), folder)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "9.bias": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match=r"says that 9\.bias is in model-00001-of-00002\.safetensors, and it is not"):
        load_weights(net(), folder)


def test_one_tensor_at_a_time_is_read_of_a_sharded_checkpoint(tmp_path):
    """Reading is a generator: nothing of the second tensor exists while the first is copied."""
    path, alive = shards(dict(net().state_dict()), tmp_path / "w"), []
    for _, tensor in weights_of(path)[0].items():
        assert not any(ref() is not None for ref in alive)
        import weakref

        alive = [weakref.ref(tensor)]
        del tensor


# Data -----------------------------------------------------------------------------------------------------------------
def data(folder: Path, text: str, **options):
    return own.data(f"{folder / 'batches.py'}:make", trust=write(folder, batches=text), **options)


def test_pairs_of_one_shape_are_put_together_and_splits_are_kept_apart(tmp_path):
    problem = data(tmp_path, BATCHES)
    assert problem.x_train.shape == (12, 3) and problem.classes == 2 and not len(problem.x_test)
    assert torch.equal(problem.y_train, torch.arange(12) % 2)
    both = BATCHES.replace("return ", "pairs = ") + "    return {'train': pairs[:1], 'test': pairs[1:]}\n"
    problem = data(tmp_path, both)
    assert len(problem.x_train) == 5 and len(problem.x_test) == 7


def test_other_batches_stay_what_they_are_and_mean_the_same(tmp_path):
    """A loader that shuffles, in float32, under a float64 network: the trace of the Hessian is that of the pairs."""
    x, y = torch.randn(12, 3), torch.arange(12) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    model, loss = nn.Linear(3, 2).double(), nn.CrossEntropyLoss()
    stream = own.Stream("loader", x[:0], y[:0], x[:0], y[:0], 0, (), given={"train": loader})
    H = spectral.Hessian(model, loss, stream.batches("train", None, torch.float64))
    G = spectral.Hessian(model, loss, [(x.double(), y)])
    v = torch.randn(8, dtype=torch.float64)
    assert torch.allclose(H @ v, G @ v, rtol=1e-12)
    cut = stream.batches("train", 7, torch.float64)
    assert [len(batch[0]) for batch in cut] == [5, 2] and cut[0][0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"operator\.split=test is empty"):
        stream.batches("test", None, torch.float64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make():\n    return []\n", "returned no batches"),
        ("def make():\n    return (i for i in range(3))\n", "can be read only once"),
        ("def make():\n    return 3\n", "must return batches"),
        ("import torch\ndef make():\n    return torch.zeros(3)\n", "is one Tensor"),
        ("import torch\ndef make():\n    return {'train': []}\n", "returned no batches"),
    ],
)  # fmt: skip
def test_what_is_no_batches_is_said(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        data(tmp_path, text)


def test_what_cannot_be_trained_on_is_said_before_it_is(tmp_path):
    loader = "from torch.utils.data import DataLoader\n" + BATCHES.replace("return list(", "return iter(").replace(
        "return iter(", "return DataLoader(list("
    ).replace("split(5)))", "split(5))), batch_size=None)")
    assert isinstance(data(tmp_path, loader), own.Stream)
    with pytest.raises(ValueError, match=r"needs all samples at hand; return such a list"):
        data(tmp_path, loader, whole=True)
    with pytest.raises(ValueError, match="are no whole numbers"):
        data(tmp_path, BATCHES.replace("% 2)", "% 2).double()"), whole=True)


# The command ----------------------------------------------------------------------------------------------------------
def prepare(folder: Path) -> list[str]:
    """net.py, batches.py and w.safetensors, and the command of one exact spectrum of them."""
    trust = write(folder, net=NET, batches=BATCHES)
    save_file(made(folder / "net.py", trust, seed=5).state_dict(), folder / "w.safetensors")
    return [
        "model=file", "model.path=net.py:make", "model.checkpoint=w.safetensors", "data=file", "data.path=batches.py:make",
        "operator=hessian", "estimator=exact", "output=numbers",
    ]  # fmt: skip


def test_the_command_takes_the_spectrum_of_ones_own_network(here, monkeypatch, capsys):  # noqa: F811
    """The eigenvalues are those of the dense Hessian; hashes of all that was run and read are recorded."""
    command = prepare(here)
    call(monkeypatch, *command, "trust=net.py,batches.py")
    (path,) = results(here)
    spectrum = Spectrum.load(path.parent / "spectra" / "spectrum.npz")
    trust = trusted(["net.py", "batches.py"])
    model, problem = made(Path("net.py"), trust, seed=5).double(), own.data("batches.py:make", trust=trust)
    names, loss = dict(model.named_parameters()), nn.CrossEntropyLoss()
    flat = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def total(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([p.numel() for p in names.values()])
        state = {name: part.view(p.shape) for (name, p), part in zip(names.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, state, problem.x_train.double()), problem.y_train)

    dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(total, flat)).numpy()
    assert np.allclose(np.sort(spectrum.atoms.values), dense, atol=1e-12)
    result = json.loads(path.read_text())
    told = {
        name: hashlib.sha256((here / name).read_bytes()).hexdigest()
        for name in ("net.py", "batches.py", "w.safetensors")
    }
    assert result["config"]["files"] == told
    assert result["cells"][0]["condition"] == "given" and "4 tensors of w.safetensors" in result["cells"][0]["weights"]
    assert "Weights: 4 tensors" in capsys.readouterr().out


def test_nothing_of_ones_own_runs_unless_it_is_typed(here, monkeypatch, capsys):  # noqa: F811
    command = prepare(here)
    (here / "net.py").write_text("open('hit', 'w')\n" + NET)
    (here / "conf" / "attack").mkdir(parents=True)
    (here / "conf" / "attack" / "a.yaml").write_text("# @package _global_\ntrust: [net.py, batches.py]\n")
    (here / "conf" / "attack" / "b.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {trust: '[net.py]'}}}\n"
    )
    own_folder = ["--config-dir", str(here / "conf")]
    for more, said in (
        (
            [],
            "model.path=net.py:make runs your own Python, which must be allowed by name: add 'trust=[net.py,batches.py]'.",
        ),
        (["trust=[net.py]"], "data.path=batches.py:make runs your own Python"),
        ([*own_folder, "+attack=a"], "lets Python of your own run; type trust=[FILE.py] yourself"),
        ([*own_folder, "+attack=b", "-m"], "lets Python of your own run; type trust=[FILE.py] yourself"),
        (["trust=[nowhere.py,net.py,batches.py]"], "nowhere.py cannot be read (No such file or directory)"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(monkeypatch, *command, *more)
        shown = capsys.readouterr().err
        assert stop.value.code == 2 and said in shown and shown.count("\n") == 1, (more, shown)
    assert not (here / "hit").exists()


OWN_LOSS = """

def twice(output, batch):
    return 2 * nn.functional.cross_entropy(output, batch[1], reduction="none")

class Broken(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return self.nothing(x)
"""


def test_the_loss_and_the_options_may_be_ones_own(here, monkeypatch):  # noqa: F811
    """The matrix of twice the cross entropy is twice that of the cross entropy; options reach the function that they are for."""
    prepare(here)
    (here / "net.py").write_text(NET + OWN_LOSS)
    call(
        monkeypatch, "model=file", "model.path=net.py:make", "model.options.width=2", "data=file", "data.path=batches.py:make",
        "operator=hessian", "operator.loss=net.py:twice", "estimator=exact", "output=numbers", "trust=[net.py,batches.py]",
    )  # fmt: skip
    (path,) = results(here)
    trust = trusted(["net.py", "batches.py"])
    model, given = made(Path("net.py"), trust, width=2).double(), own.data("batches.py:make", trust=trust)
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(given.x_train.double(), given.y_train)])
    found = Spectrum.load(path.parent / "spectra" / "spectrum.npz").atoms.values
    np.testing.assert_allclose(np.sort(found), 2 * np.sort(spectral.exact(H).atoms.values), atol=1e-12)


PAIR = """

class Pair(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x, scale):
        return super().forward(x) * scale, scale

def called(model, batch):
    return model(batch[0], 2)[0]
"""
SPLITS = """

def loaders():
    data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*make())))
    return {name: torch.utils.data.DataLoader(data, 5, shuffle=True) for name in ("train", "test")}

def lists():
    return {"train": make(), "test": make()}

def tuples():
    return loaders()["train"], loaders()["test"]
"""


@pytest.mark.parametrize("data", ["loaders", "lists"])
def test_the_forward_pass_may_be_ones_own(here, monkeypatch, data):  # noqa: F811
    """What messages advise (forward=) can be said to the command; the test accuracy is that of its outputs, of any batches."""
    write(here, net=NET + PAIR, batches=BATCHES + SPLITS)
    call(
        monkeypatch, "model=file", "model.path=net.py:Pair", "data=file", f"data.path=batches.py:{data}", "operator=hessian",
        "operator.forward=net.py:called", "estimator=exact", "output=numbers", "trust=[net.py,batches.py]",
    )  # fmt: skip
    trust = trusted(["net.py", "batches.py"])
    model, given = own.model(None, "net.py:Pair", trust=trust).double(), own.data("batches.py:lists", trust=trust)  # type: ignore[arg-type]
    x, y = given.x_test.double(), given.y_test
    H = spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda model, batch: model(batch[0], 2)[0])
    (path,) = results(here)
    found = Spectrum.load(path.parent / "spectra" / "spectrum.npz").atoms.values
    np.testing.assert_allclose(np.sort(found), np.sort(spectral.exact(H).atoms.values), atol=1e-12)
    right = (model(x, 2)[0].argmax(1) == y).double().mean().item()
    assert json.loads(path.read_text())["cells"][0]["test_accuracy"] == pytest.approx(right)


def test_which_samples_a_loader_that_shuffles_gives_depends_on_the_seed_alone(here, monkeypatch):  # noqa: F811
    """Two checkpoints of the same weights in one sweep had different traces."""
    write(here, net=NET, batches=BATCHES + SPLITS)
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        call(
            monkeypatch, "model=file", "model.path=net.py:make", "data=file", "data.path=batches.py:loaders", "operator=hessian",
            "operator.samples=3", "estimator=trace", "output=numbers", "trust=[net.py,batches.py]", f"seed={seed}",
            f"hydra.run.dir={state}{seed}",
        )  # fmt: skip
    first, again, other = (json.loads(Path(f"{d}/result.json").read_text())["metrics"]["trace"] for d in (10, 20, 21))
    assert first == again != other


@pytest.mark.parametrize("net", ["pair", "one"])
def test_what_is_no_logits_has_no_accuracy_and_stops_nothing(here, monkeypatch, net):  # noqa: F811
    """A network that returns (logits, state) ended in the words of the cross entropy, after which no loss of one's own helped,
    and one that returns a number for each sample in an IndexError."""
    loss = "\ndef first(output, batch):\n    return nn.functional.cross_entropy(output[0], batch[1])\n"
    pair = NET + PAIR.replace("x, scale)", "x, scale=2)") + loss
    loss = "\ndef first(output, batch):\n    return (output - batch[1]).square()\n"
    one = NET + "\ndef Pair():\n    return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))\n" + loss
    net = {"pair": pair, "one": one}[net]
    write(here, net=net, batches=BATCHES + SPLITS)
    call(
        monkeypatch, "model=file", "model.path=net.py:Pair", "data=file", "data.path=batches.py:lists", "operator=hessian",
        "operator.loss=net.py:first", "estimator=exact", "output=numbers", "trust=[net.py,batches.py]",
    )  # fmt: skip
    (path,) = results(here)
    assert json.loads(path.read_text())["cells"][0]["test_accuracy"] is None


@pytest.mark.parametrize(
    "settings, said",
    [
        (["data.path=batches.py:tuples"], "data is a tuple that holds a DataLoader, but its entries must be batches; pass one."),
        (["data.path=batches.py:tuples"], 'such as a list of (x, y), or splits of them {"train": ..., "test": ...}'),
        (["operator.forward=other.py:f"], "add 'trust=[net.py,batches.py,other.py]'"),
        (["operator.los=net.py:twice"], "There is no operator.los (did you mean loss?); operator has split, samples, loss"),
        (
            ["model.path=net.py:Broken", "model.checkpoint=null"],
            "net.py, line 15 failed with AttributeError: 'Broken' object has no attribute 'nothing'; mend it and run again.",
        ),
    ],
)  # fmt: skip
def test_a_slip_about_ones_own_code_is_one_sentence(here, monkeypatch, capsys, settings, said):  # noqa: F811
    command = prepare(here)
    (here / "net.py").write_text(NET + OWN_LOSS)
    (here / "batches.py").write_text(BATCHES + SPLITS)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *command, "trust=[net.py,batches.py]", *settings)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and said in shown and shown.count("\n") == 1


def test_what_is_trusted_is_what_was_typed():
    for trust, typed in (
        ([], {}),
        (["a.py"], {"trust": "[a.py]"}),
        (["a b.py", "c.py"], {"trust": "['a b.py', c.py]"}),
    ):
        configuration.check_typed(trust, typed)
    for trust, typed in (
        (["a.py"], {}),
        (["b.py"], {"trust": "[a.py]"}),
        (["${x}"], {"trust": "[${x}]"}),
        ("${x}", {}),
    ):
        with pytest.raises(ValueError, match="type trust="):
            configuration.check_typed(trust, typed)


def test_settings_of_files_are_not_given_for_batches(here):  # noqa: F811
    prepare(here)
    target = "spectral.experiments.own."
    for node, said in (
        ({"path": "batches.py:make", "train": 10}, "train, test and standardise at auto"),
        ({"path": "mine.npz", "options": {"a": 1}}, "options nowhere else"),
        ({"path": "mine.npz", "train": "all"}, "data.train='all' is not possible"),
    ):
        with pytest.raises(ValueError, match=said):
            try:
                configuration.CONFIG.must["data"].check({"_target_": f"{target}data", **node}, "data")
            except Broken as problem:
                raise ValueError(problem.words) from problem
            except Mismatch as problem:
                raise ValueError(f"{problem.where}={problem.got!r} is not possible") from problem


@pytest.mark.slow
def test_an_edit_of_what_was_run_or_read_makes_another_run_of_it(here, monkeypatch):  # noqa: F811
    command = [*prepare(here), "trust=[net.py,batches.py]", "hydra.sweep.dir=swept", "-m"]
    call(monkeypatch, *command, "seed=0")
    call(monkeypatch, *command, "seed=0", "resume=true")
    assert len(results(here)) == 1 and len(list((here / "outputs" / "state").iterdir())) == 1
    (here / "net.py").write_text(NET.replace("Tanh", "ReLU"))
    call(monkeypatch, *command, "seed=0", "resume=true")
    save_file(
        {k: 2 * v for k, v in made(here / "net.py", trusted(["net.py"])).state_dict().items()},
        here / "w.safetensors",
    )
    call(monkeypatch, *command, "seed=0", "resume=true")
    traces = {json.loads(path.read_text())["metrics"]["trace"] for path in results(here)}
    assert len(results(here)) == len(traces) == 3 and len(list((here / "outputs" / "state").iterdir())) == 3


@pytest.mark.slow
def test_a_sweep_over_checkpoints_is_told_apart_by_their_names(here, monkeypatch):  # noqa: F811
    from spectral.pages import sweep

    command = prepare(here)
    (here / "v.safetensors").write_bytes((here / "w.safetensors").read_bytes())
    save_file(
        {k: 2 * v for k, v in made(here / "net.py", trusted(["net.py"])).state_dict().items()},
        here / "v.safetensors",
    )
    command = [text for text in command if "checkpoint" not in text]
    call(monkeypatch, *command, "trust=[net.py,batches.py]", "model.checkpoint=v.safetensors,w.safetensors", "-m")
    gathered = sweep.sweep_of(sweep.find([here / "outputs"]))
    assert gathered.columns == ("checkpoint",)
    assert [c.values for c in gathered.configurations] == [("v.safetensors",), ("w.safetensors",)]


def test_paths_are_those_of_the_folder_where_the_command_was_started(here, monkeypatch, capsys):  # noqa: F811
    command = (*prepare(here), "trust=[net.py,batches.py]", "hydra.job.chdir=true")
    with pytest.raises(SystemExit):
        call(monkeypatch, *command)
    assert "hydra.job.chdir=true is not allowed; leave it out." in capsys.readouterr().err and not results(here)


@pytest.mark.slow
def test_experiments_train_ones_own_network(here, monkeypatch):  # noqa: F811
    command = [text for text in prepare(here) if not text.startswith(("operator", "estimator", "model.checkpoint"))]
    call(
        monkeypatch, *command, "trust=[net.py,batches.py]", "experiment=real_vs_random", "training=adam",
        "experiment.seeds=[0,1]", "experiment.kinds=[stacked]", "experiment.splits=[train]", "training.options.max_epochs=5",
    )  # fmt: skip
    assert len(json.loads(results(here)[0].read_text())["cells"]) == 12


def test_labels_of_one_class_lie_nowhere_and_cost_no_spectrum(here, monkeypatch, capsys):  # noqa: F811
    """They failed once the spectrum was done."""
    write(here, net=NET, batches=BATCHES.replace("torch.arange(12) % 2", "0 * torch.arange(12)"))
    files = [
        "model=file",
        "model.path=net.py:make",
        "data=file",
        "data.path=batches.py:make",
        "trust=[net.py,batches.py]",
    ]
    call(monkeypatch, *files, "operator=jacobian", "estimator=exact", "output.figures=false")
    assert "No label alignment: the labels are all of one class." in capsys.readouterr().out
    numbers = json.loads(results(here)[0].read_text())["cells"][0]["metrics"]
    assert numbers["trace"] > 0 and not numbers["true_label_alignment"]


# Hugging Face ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_folder_of_hugging_face_reads_text_in_its_own_tokens(here, monkeypatch, capsys):  # noqa: F811
    """A tiny GPT-2 and a tokenizer of words, both made here: passages in its tokens, a spectrum of its curvature, no network."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", *"abcdefghij"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained("gpt")
    size = {"vocab_size": len(words), "n_positions": 16, "n_embd": 4, "n_layer": 1, "n_head": 2}
    inner = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))
    inner.save_pretrained("gpt")
    Path("mine.txt").write_text(" ".join(np.random.default_rng(0).choice(list("abcdefghijz"), 400)))
    encode, classes = pretrained.tokeniser("gpt")
    assert encode("a j z") == [1, 10, 0] and classes == 11
    call(
        monkeypatch, "model=huggingface", "model.name=gpt", "data.path=mine.txt", "data.train=6", "data.test=2", "data.length=8",
        "operator=gauss_newton", "estimator=exact", "output=numbers",
    )  # fmt: skip
    result = json.loads(results(here)[0].read_text())
    assert result["metrics"]["dim"] == sum(p.numel() for p in inner.parameters())
    assert "GPT2LMHeadModel of gpt (float32)" in capsys.readouterr().out
    assert result["config"]["data"]["tokens"] == "gpt" and {"gpt", "mine.txt"} == set(result["config"]["files"])
    with pytest.raises(ValueError, match="gpt reads its own tokens and predicts the next one, not tokens=bytes"):
        own.huggingface(Problem("text", *[torch.zeros(0)] * 4, 3, (2,), "bytes", "next"), "gpt")
    Path("gpt", "tokenizer.json").unlink()  # then those that somebody names, as the command's own sentence advises
    with pytest.raises(ValueError, match="gpt knows 11 tokens, and tokens=bytes has 256"):
        own.huggingface(Problem("text", *[torch.zeros(0)] * 4, 256, (2,), "bytes", "next"), "gpt")
    named = own.huggingface(Problem("text", *[torch.zeros(0)] * 4, 11, (2,), "bytes", "next"), "gpt")
    ids = torch.arange(6).view(1, 6)
    torch.testing.assert_close(named(ids), inner.eval()(ids).logits.transpose(1, 2))
    write(
        here,
        batches="import torch\n\ndef make():\n    ids = torch.arange(24).view(3, 8) % 11\n"
        "    return [{'input_ids': ids, 'labels': ids}]\n",
    )
    call(
        monkeypatch, "model=huggingface", "model.name=gpt", "data=file", "data.path=batches.py:make", "trust=[batches.py]",
        "operator=hessian", "operator.loss=null", "estimator=exact", "output=numbers",
    )  # fmt: skip
    ids, loss = torch.arange(24).view(3, 8) % 11, inner.double().eval()
    A = spectral.Hessian(loss, None, [{"input_ids": ids, "labels": ids}])
    mine = json.loads(results(here)[1].read_text())["metrics"]["trace"]
    assert mine == pytest.approx(float(spectral.exact(A).integrate(lambda x: x)), rel=1e-9)


@pytest.mark.slow
def test_a_folder_that_lacks_weights_or_has_code_is_refused(here):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"no folder with a config\.json"):
        pretrained.of_folder("nowhere")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4
    )
    transformers.BertModel(config).save_pretrained("bert")
    with pytest.raises(
        ValueError, match="bert is a BertModel, and text needs a causal language model; give batches of your own"
    ):
        own.huggingface(Problem("text", *[torch.zeros(0)] * 4, 3, (2,), "bert", "next"), "bert")
    whole = json.loads(Path("bert/config.json").read_text())
    Path("bert/config.json").write_text(json.dumps({**whole, "architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(ValueError, match=r"lacks the weights of .*, which transformers would draw at random"):
        pretrained.of_folder("bert")
    Path("bert/config.json").write_text(
        json.dumps({**whole, "architectures": ["MyModel"], "auto_map": {"AutoModel": "x.MyModel"}})
    )
    with pytest.raises(ValueError, match="code of a folder is not run"):
        pretrained.of_folder("bert")


# The walk -------------------------------------------------------------------------------------------------------------
WALK = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text()


def test_the_files_of_the_walk_are_those_of_the_examples():
    shown = re.findall(r"^```python\n(.*?)^```", WALK, flags=re.DOTALL | re.MULTILINE)
    assert shown[:2] == [(EXAMPLE / name).read_text() for name in ("net.py", "batches.py")]


@pytest.mark.slow
def test_every_command_of_the_walk_runs(tmp_path, monkeypatch):
    """In an empty folder with the three files, as a stranger would type them."""
    import shlex
    import shutil
    import subprocess

    for name in ("net.py", "batches.py", "train.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE.parents[1])}
    blocks = re.findall(r"^```bash\n(.*?)^```", WALK, flags=re.DOTALL | re.MULTILINE)
    modules = {"spectral": ["-m", "spectral"], "spectral-report": ["-m", "spectral.pages.sweep"], "python": []}
    for line in "".join(blocks).splitlines():
        program, *arguments = shlex.split(line)
        more = ["training.options.max_epochs=20"] if any("experiment=" in text for text in arguments) else []
        done = subprocess.run(
            [sys.executable, *modules[program], *arguments, *more], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len(list(tmp_path.rglob("report.html"))) == 4 and (tmp_path / "two" / "sweep.html").exists()


@pytest.mark.slow
def test_the_notebook_runs_and_every_cell_that_shows_a_result_shows_a_card(tmp_path, monkeypatch):
    import ast
    import runpy
    import shutil

    import matplotlib.pyplot as plt

    shutil.copytree(EXAMPLE, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    monkeypatch.setattr(plt, "show", lambda: None)
    runpy.run_path("train.py")
    notebook = json.loads(Path("own_network.ipynb").read_text())
    names: dict[str, object] = {}
    cards = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
                cards.append(getattr(shown, "_repr_html_", lambda: "")())
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)
    plt.close("all")
    assert [bool(card) for card in cards] == [True] * 5 + [False] and Path("page.html").exists()
    for name in ("net", "batches"):
        sys.modules.pop(name, None)
