"""Watcher: the share is kept, what is asked for is read or recorded as skipped, and the network trains as if nobody watched."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import math
import pickle
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

import spectral
from spectral import Watcher
from spectral.estimators import budget
from spectral.watch import Skipped

mpl.use("Agg")


class Dear(spectral.Operator):
    """diag(values), whose products take `seconds` each of a clock that nothing else moves."""

    def __init__(self, values, clock, seconds):
        super().__init__((len(values), len(values)), torch.float64, symmetric=True, nonnegative=True)
        self.values, self.clock, self.seconds = torch.as_tensor(values, dtype=torch.float64), clock, seconds

    def _apply(self, V):
        self.clock.now += self.seconds * V.shape[1]
        return self.values[:, None] * V


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


VALUES = np.append(np.linspace(0, 1, 50), [2.0, 5.0])


def trained(steps, *, product=0.01, build=0.5, each=1.0, patch=None, **options):
    """A watcher over `steps` steps of a second each, and what it had watched and trained after each."""
    clock = Clock()
    if patch is not None:
        patch.setattr(budget, "time", SimpleNamespace(monotonic=clock))  # seconds of a budget are those of the clock

    def make():
        clock.now += build
        return Dear(VALUES, clock, product)

    watcher, told = Watcher(make, clock=clock, **options), []
    for step in range(steps):
        watcher(step)
        told.append((watcher.watched, watcher.trained))
        clock.now += each
    watcher.close()
    return watcher, told


@pytest.mark.parametrize(("share", "product"), [(0.02, 0.01), (0.05, 0.1), (1.0, 0.2)])
def test_watching_never_takes_more_than_its_share_and_everything_due_is_read_or_skipped(share, product, monkeypatch):
    watcher, told = trained(200, every=25, share=share, product=product, patch=monkeypatch)
    for watched, seconds in told:
        assert watched <= share * seconds + 1e-9
    saved = (
        2
        * 1.25
        * sum(max((r.seconds for r in watcher.readings if r.what == what), default=0.0) for what in watcher.options)
    )
    for i, (watched, seconds) in enumerate(told):  # over every window too, but for what was saved before it
        assert all(w - watched <= share * (s - seconds) + saved + 1e-9 for w, s in told[i:] if watched > 0.5)
    kinds = list(watcher.options)
    due = [25 * i for i in range(8)]
    for kind in kinds:
        found = [r.due for r in watcher.readings if r.what == kind] + [s.due for s in watcher.skipped if s.what == kind]
        assert sorted(found) == due
    assert all(reading.due <= reading.step < reading.due + 25 for reading in watcher.readings)
    assert watcher.watched == pytest.approx(told[-1][0]) and all(
        "s are there" in s.reason or "ended" in s.reason for s in watcher.skipped
    )


def test_what_is_cheap_is_read_whenever_it_is_due_and_what_is_dear_gets_the_rest():
    watcher, told = trained(400, every=20, share=0.05, product=0.05, what=("trace", "esd"))
    made = {what: sum(r.what == what for r in watcher.readings) for what in watcher.options}
    assert made["trace"] >= 17 and 3 <= made["esd"] < 14  # half a second, and one and a half, of one that 20 steps earn
    assert told[-1][0] > 0.75 * 0.05 * told[-1][1]  # nearly all of the share is used


def test_no_share_reads_all_that_is_due_at_once():
    watcher, _ = trained(21, every=10, share=None)
    assert [(r.step, r.what) for r in watcher.readings] == [
        (step, what) for step in (0, 10, 20) for what in ("top", "trace", "esd")
    ]
    assert watcher.skipped == []
    assert watcher.history("top")["eigenvalue_1"] == pytest.approx([5.0] * 3, abs=1e-3)
    lower, upper = (watcher.history("trace")[f"trace_{end}"] for end in ("lower", "upper"))
    assert (lower - 3 * (upper - lower) <= VALUES.sum()).all() and (VALUES.sum() <= upper + 3 * (upper - lower)).all()
    assert {step: s.dim for step, s in watcher.spectra().items()} == {0: 52, 10: 52, 20: 52}


def test_a_pause_gives_no_burst():
    """An hour in which nothing was due does not pay for readings at ten times the share afterwards."""
    clock = Clock()
    watcher = Watcher(lambda: Dear(VALUES, clock, 0.1), every=1, share=0.05, what=("trace",), clock=clock)
    for step in range(600):
        clock.now += 3600.0 if step == 300 else 1.0
        watcher(step)
        if step == 300:
            before = watcher.watched
    one = max(r.seconds for r in watcher.readings)
    assert watcher.watched - before <= 0.05 * 299 + 4 * one


def test_a_reading_at_once_counts_and_later_ones_wait_for_it():
    clock = Clock()
    watcher = Watcher(lambda: Dear(VALUES, clock, 1.0), every=10, what=("trace", "top"), share=0.1, clock=clock)
    (reading,) = watcher.read(0, "trace")
    assert (reading.what, reading.products, reading.step) == ("trace", 10, 0) and watcher.watched == 10.0
    for step in range(1, 100):
        clock.now += 1.0
        assert watcher(step) == []
    with pytest.raises(ValueError, match="'esd' is not watched; use trace, top"):
        watcher.read(100, "esd")


def problem(seed=0, batch_norm=True):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(12), nn.Dropout(0.3)] if batch_norm else []
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), *middle, nn.Linear(12, 3))
    x = torch.randn(48, 6)
    return model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss()


def run(watch, steps=4, **options):
    """Weights, buffers, gradients and random numbers after a training, watched or not."""
    model, x, y, loss = problem()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    noise = torch.randn(len(x), 6)  # drawn by what makes the operator: a watcher hides that too
    watcher = (
        Watcher(lambda: spectral.Hessian(model, loss, [(x[:16] + torch.randn(16, 6), y[:16])]), **options)
        if watch
        else None
    )
    for step in range(steps):
        optimizer.zero_grad()
        chosen = torch.randperm(len(x))[:20]
        loss(model(x[chosen] + 0.01 * noise[chosen]), y[chosen]).backward()
        optimizer.step()
        if watcher is not None:
            watcher(step)
            assert model.training
    state = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.rand(3)]
    return state, torch.from_numpy(np.random.rand(2)), watcher  # noqa: NPY002


def test_a_network_trains_to_the_same_bits_as_unwatched():
    np.random.seed(0)  # noqa: NPY002
    plain, drawn, _ = run(False)
    np.random.seed(0)  # noqa: NPY002
    kinds = {"top": {"tol": 0.1}, "trace": {"probes": 3}, "esd": {"steps": 4}, "critical_sharpness": {}}
    watched, also, watcher = run(True, every=4, share=None, what=kinds)
    assert len(watcher.readings) == 4 and watcher.skipped == []
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)) and torch.equal(drawn, also)


@pytest.mark.parametrize("built", ["outside", "inside"])
def test_a_training_in_autocast_is_watched(built):
    """Estimators are refused in it, which ended the loop; the matrix is of the precision in which it was built."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 3), torch.randn(8, 3), torch.randint(3, (8,))
    make, what = (
        lambda: spectral.Hessian(model, nn.CrossEntropyLoss(), [(x, y)]),
        ("top", "trace", "critical_sharpness"),
    )
    watcher = Watcher(make, every=1, share=None, what=what)
    if built == "outside":
        watcher(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        readings = watcher(1)
        A = make() if built == "inside" else None
    due = float(spectral.top(A or make(), 1).values[0])
    assert {r.what for r in readings} == set(what) and not watcher.skipped
    assert float(readings[0].estimates["eigenvalue_1"]) == pytest.approx(due, rel=1e-3)


def test_readings_are_those_of_the_estimators_at_the_weights_of_then(tmp_path):
    model, x, y, loss = problem(batch_norm=False)
    data = [(x[:20], y[:20])]
    what = {"top": {"k": 2, "tol": 1e-6}, "critical_sharpness": {}, "trace": {"probes": 12}}
    watcher = Watcher(lambda: spectral.GaussNewton(model, loss, data), every=1, share=None, what=what)
    for step in range(2):
        with torch.no_grad():
            model[0].weight *= 1.1
        pairs, sharp, trace = watcher(step)
        A = spectral.GaussNewton(model, loss, data)
        values = spectral.top(A, 2, tol=1e-6).values
        assert [float(pairs.estimates[f"eigenvalue_{i}"]) for i in (1, 2)] == pytest.approx(values, rel=1e-4)
        assert float(trace.estimates["trace"]) == pytest.approx(spectral.trace(A, probes=12).value, rel=1e-4)
        e = spectral.critical_sharpness(A)
        assert (
            sharp.estimates["critical_sharpness"].lower <= e.upper
            and e.lower <= sharp.estimates["critical_sharpness"].upper
        )


# The history ----------------------------------------------------------------------------------------------------------
def test_a_history_is_on_disk_as_it_grows_and_a_later_watcher_goes_on_with_it(tmp_path):
    A = np.diag([1.0, 2.0, 4.0])
    options = {"every": 5, "share": None, "folder": tmp_path / "watched"}
    first = Watcher(lambda: A, **options)
    for step in range(12):
        first(step)
        events = [
            json.loads(line)["event"] for line in (tmp_path / "watched" / "history.jsonl").read_text().splitlines()
        ]
        assert events.count("reading") == len(first.readings)
    second = Watcher(lambda: 2 * A, **options)  # nothing was said of how the first one ended
    for name in ("top", "trace"):
        for key, value in first.history(name).items():
            np.testing.assert_array_equal(value, second.history(name)[key])
    for step in range(8, 16):  # from a checkpoint of the training at step 8: what was read at 10 is of another future
        second(step)
    third = Watcher(lambda: A, **options)
    assert third.history("top")["step"].tolist() == second.history("top")["step"].tolist() == [0, 5, 8, 10, 15]
    assert third.history("top")["eigenvalue_1"] == pytest.approx([4, 4, 8, 8, 8])
    assert [float(s.nodes.max()) for s in third.spectra().values()] == pytest.approx([4, 4, 8, 8, 8])
    assert len(list((tmp_path / "watched").glob("*.npz"))) == 6  # none was written over


def test_what_a_crash_leaves_of_a_line_is_cut_off_and_damage_is_said(tmp_path):
    watcher = Watcher(lambda: np.eye(3), every=1, share=None, what=("trace",), folder=tmp_path)
    watcher(0), watcher(1)
    path = tmp_path / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "read')
    assert len(Watcher(lambda: np.eye(3), every=1, what=("trace",), folder=tmp_path).readings) == 2
    assert path.read_bytes() == whole
    for line, message in (
        (b"[]\n", "line 5 is no event"), (b'{"event": "dance"}\n', "unknown kind 'dance'"), (b"\xff\n", "damaged"),
        (b'{"event": "skipped", "step": -1, "due": 0, "what": "top", "reason": ""}\n', "step"),
        (b'{"event": "reading", "step": 1, "due": 0, "what": "trace", "seconds": 1, "products": 1, "complete": true, '
         b'"estimates": {}, "file": "../../x.npz"}\n', "a file of this folder"),
    ):  # fmt: skip
        path.write_bytes(whole + line)
        with pytest.raises(ValueError, match=message):
            Watcher(lambda: np.eye(3), every=1, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"history.jsonl cannot be written \(File exists\); name a file in another folder"
    ):
        Watcher(lambda: np.eye(3), every=1, folder=tmp_path / "file")


def test_infinite_and_missing_bounds_come_back_from_disk(tmp_path):
    model = nn.Linear(2, 1, bias=False).double()
    make = lambda: spectral.Hessian(  # noqa: E731
        model, lambda z, batch: (z.sum(), len(z)), [(torch.ones(3, 2, dtype=torch.float64),)], preflight=False
    )
    options = {"every": 1, "share": None, "what": ("critical_sharpness",), "folder": tmp_path}
    Watcher(make, **options)(0)
    e = Watcher(make, **options).readings[0].estimates["critical_sharpness"]
    assert math.isnan(e.value) and e.lower == 0.0 and e.upper > 0


# What goes wrong ------------------------------------------------------------------------------------------------------
def test_what_never_worked_is_raised_and_what_fails_later_is_recorded():
    model, x, y, loss = problem(batch_norm=False)
    watcher = Watcher(lambda: spectral.Hessian(model, loss, [(x, y)]), every=1, share=None, what=("trace",))
    watcher(0)
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match="the reading of trace at step 1 failed"):
        assert watcher(1) == []
    assert [(s.what, s.step, s.due) for s in watcher.skipped] == [("trace", 1, 1)] and "it failed" in watcher.skipped[
        0
    ].reason
    with pytest.raises(TypeError, match="has no loss over data"):
        Watcher(lambda: np.eye(2), every=1, share=None, what=("critical_sharpness",))(0)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"every": 0}, ValueError, "every=0"),
        ({"share": 0.0}, ValueError, "share=0.0 is no share"),
        ({"share": math.inf}, ValueError, "share=inf"),
        ({"what": ("top", "bottom")}, ValueError, "are no kinds of readings; use some of top, trace"),
        ({"what": ()}, ValueError, "no kinds"),
        ({"what": ("top", "top")}, ValueError, "each once"),
        ({"what": {"top": {"start": None}}}, TypeError, "no options of it"),
        ({"what": {"esd": {"stepz": 3}}}, TypeError, "no options of it"),
        ({"log": 3}, TypeError, "log=3 takes no numbers"),
        ({"log": "tensorboard"}, ValueError, "give folder="),
        ({"make_operator": np.eye(2)}, TypeError, "make_operator is a ndarray"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(options, kind, message):
    given = {"make_operator": lambda: pytest.fail("made"), "every": 1, **options}
    with pytest.raises(kind, match=message):
        Watcher(given.pop("make_operator"), **given)


ABSENT = {
    "transformers": lambda w: w.trainer_callback(),
    "lightning.pytorch": lambda w: w.lightning_callback(),
    "tensorboard": lambda w: Watcher(lambda: np.eye(2), every=1, log="tensorboard", folder="nowhere"),
    "wandb": lambda w: Watcher(lambda: np.eye(2), every=1, log="wandb"),
}


@pytest.mark.parametrize("package", ABSENT)
def test_a_package_that_is_not_installed_is_named_with_what_to_run(package, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package} \(.*\); run: pip install '?(spectral\[watch\]|wandb)"):
        ABSENT[package](Watcher(lambda: np.eye(2), every=1))


def test_a_training_of_a_moment_is_told_in_plain_per_cent():
    watcher = Watcher(lambda: np.eye(2), every=1)
    watcher.watched, watcher.trained = 5.07, 0.197
    assert "(2,574 % of training)" in str(watcher)
    watcher.watched = 0.0065
    assert "(3.3 % of training)" in str(watcher)


def test_a_watcher_and_its_callbacks_are_no_pickles():
    watcher = Watcher(lambda: np.eye(2), every=1)
    callbacks = (("transformers", "trainer_callback"), ("lightning", "lightning_callback"))
    made = [getattr(watcher, name)() for package, name in callbacks if importlib.util.find_spec(package)]
    for given in (watcher, *made):
        for taken in (pickle.dumps, copy.deepcopy):
            with pytest.raises(
                TypeError, match="A Watcher belongs to the network that trains here, and can be neither"
            ):
                taken(given)


def test_steps_do_not_go_back():
    watcher = Watcher(lambda: np.eye(2), every=1, what=("trace",))
    watcher(5)
    with pytest.raises(ValueError, match="step=4 comes before 5"):
        watcher(4)
    with pytest.raises(ValueError, match="step=-1"):
        Watcher(lambda: np.eye(2), every=1)(-1)


# Where it goes --------------------------------------------------------------------------------------------------------
def test_numbers_go_to_whatever_takes_them():
    seen: dict[str, list] = {"call": [], "scalar": [], "log": [], "metrics": []}
    logs = [
        lambda numbers, step: seen["call"].append((numbers, step)),
        SimpleNamespace(add_scalar=lambda name, value, step: seen["scalar"].append((name, value, step))),
        SimpleNamespace(log=lambda numbers, step: seen["log"].append((numbers, step))),
        SimpleNamespace(log_metrics=lambda numbers, step: seen["metrics"].append((numbers, step))),
    ]
    for log in logs:
        Watcher(lambda: np.diag([1.0, 2.0]), every=1, share=None, what=("trace", "esd"), log=log)(3)
    numbers = {"trace/trace": 3.0, "trace/trace_error": 0.0}
    assert seen["call"] == seen["log"] == seen["metrics"] == [(numbers, 3)]
    assert seen["scalar"] == [(*item, 3) for item in numbers.items()]


class Run:
    """A run of wandb 0.31, as far as steps go: what is logged without one joins the present row until a commit."""

    def __init__(self):
        self.step, self.row, self.rows, self.axes = 0, {}, [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, numbers, step=None, commit=None):
        if step is not None and step < self.step:
            return  # "Tried to log to step 0 that is less than the current step 1 ... this data will be ignored"
        if step is not None and step > self.step:
            self._close(step)
        self.row |= numbers
        if commit or (commit is None and step is None):
            self._close(self.step + 1)

    def _close(self, step):
        self.rows, self.row, self.step = [*self.rows, self.row], {}, step


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("training", ["counts by itself", "gives its steps", "logs after readings", "logs nothing"])
def test_no_number_of_a_wandb_run_is_lost_whoever_counts_its_steps(training, package):
    run = Run()
    log = SimpleNamespace(run=run, define_metric=None) if package else run
    watcher = Watcher(lambda: np.diag([1.0, 2.0]), every=2, share=None, what=("trace", "top"), log=log)
    for step in range(6):
        if training == "counts by itself":
            run.log({"loss": step})
        if training == "gives its steps":
            run.log({"loss": step}, step=step)
        watcher(step)
        if training == "logs after readings":
            run.log({"loss": step}, step=step)
    rows = [*run.rows, run.row]
    read = {row["watched step"]: (row["trace/trace"], row["top/eigenvalue_1"]) for row in rows if "watched step" in row}
    assert read == dict.fromkeys((0, 2, 4), (3.0, pytest.approx(2.0)))
    assert [row["loss"] for row in rows if "loss" in row] == ([] if training == "logs nothing" else list(range(6)))
    assert set(run.axes.values()) == {"watched step"} and {"trace/trace", "top/eigenvalue_1"} <= set(run.axes)


def test_a_wandb_that_has_no_run_is_a_sentence():
    watcher = Watcher(
        lambda: np.eye(2), every=1, share=None, what=("trace",), log=SimpleNamespace(run=None, define_metric=None)
    )
    with pytest.raises(ValueError, match=r"no run is under way; call wandb\.init"):
        watcher(0)


def test_tensorboard_writes_beside_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    Watcher(lambda: np.eye(2), every=1, share=None, what=("trace",), folder=tmp_path, log="tensorboard")(0)
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.mark.parametrize("signs", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_the_picture_shows_each_kind_and_the_waterfall_its_single_eigenvalues(signs):
    watcher = Watcher(lambda: np.diag(np.append(np.linspace(0.1, 1, 60), signs * 30.0)), every=10, share=None)
    with pytest.raises(ValueError, match="nothing was read that could be drawn"):
        watcher.plot()
    for step in (0, 40):
        watcher(step)
    figure = watcher.plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["top", "trace"] and figure.axes[2].get_xscale() == ("log" if signs > 0 else "symlog")
    meshes = figure.axes[2].collections
    assert len(
        [m for m in meshes if hasattr(m, "norm") and m.get_array() is not None and m.get_array().size > 500]
    ) == (1 if signs > 0 else 2)
    ax = mpl.pyplot.subplots()[1]
    assert watcher.plot(ax) is ax and ax.get_ylim() == (-20.0, 60.0)
    mpl.pyplot.close("all")


# In other people's loops ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_transformers_trainer_calls_it_after_each_step(tmp_path):
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("a Trainer needs accelerate")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(17, (24, 8))]
    batch = {key: torch.stack([d[key] for d in data[:4]]) for key in ("input_ids", "labels")}
    seen: list[int] = []
    watcher = Watcher(
        lambda: spectral.GaussNewton(model, None, [batch]), every=3, share=None, what=("top", "critical_sharpness"),
        log=lambda numbers, step: seen.append(step),
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[watcher.trainer_callback()])
    trainer.train()
    assert watcher.history("top")["step"].tolist() == [0, 3, 6] and seen == [0, 0, 3, 3, 6, 6]
    assert model.training and watcher.history("top")["eigenvalue_1"].min() > 0


@pytest.mark.slow
def test_a_lightning_trainer_calls_it_after_each_step_and_its_loggers_take_the_numbers(tmp_path):
    if sys.platform == "win32" or importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed; it is in the extra watch")
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner, self.x, self.y, self.loss = problem(batch_norm=False)

        def training_step(self, batch, index):
            x, y = batch
            return self.loss(self.inner(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(module.x, module.y), batch_size=8)
    make = lambda: spectral.Hessian(module.inner, module.loss, [(module.x[:16], module.y[:16])])  # noqa: E731
    watcher = Watcher(make, every=4, share=None, what=("trace",))
    logger = CSVLogger(tmp_path)
    trainer = pl.Trainer(
        max_steps=8, accelerator="cpu", logger=logger, callbacks=[watcher.lightning_callback()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    assert watcher.history("trace")["step"].tolist() == [0, 4, 8]
    assert "trace/trace" in (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()


def test_a_watcher_of_a_history_says_how_far_it_goes(tmp_path):
    options = {"every": 10, "share": None, "what": ("trace",), "folder": tmp_path}
    watcher = Watcher(lambda: np.eye(2), **options)
    watcher(0), watcher(50)
    assert str(Watcher(lambda: np.eye(2), **options)).startswith("2 readings by step 50, 0 skipped")


def test_what_was_still_waiting_at_the_end_is_recorded():
    watcher = Watcher(lambda: np.eye(2), every=1, what=("trace",))
    watcher(0)
    watcher.close()
    assert watcher.skipped == [Skipped("trace", 0, 0, "training ended before there was time for it")]


@pytest.mark.parametrize(
    "hook", ["on_init_end", "on_train_begin", "setup", "on_exception"]
)  # of transformers, of Lightning
def test_a_trainer_that_is_given_the_watcher_itself_is_told_what_to_give_it(hook):
    watcher = spectral.Watcher(lambda: np.eye(2), every=1)
    with pytest.raises(
        AttributeError, match=r"give a trainer watcher.trainer_callback\(\) or watcher.lightning_callback\(\)"
    ):
        getattr(watcher, hook)
    with pytest.raises(AttributeError, match=r"a Watcher has no histories\."):
        watcher.histories  # noqa: B018


def test_the_powers_of_a_waterfall_stand_apart():
    """Those of both signs beside other panels: they touched."""
    values = np.geomspace(1e-4, 3.0, 20)
    watcher = spectral.Watcher(lambda: np.diag([*values, *-values]), every=1, share=None, what=("top", "trace", "esd"))
    watcher(0), watcher(1)
    figure = watcher.plot()
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[2].get_xticklabels()]
    assert len(boxes) == 5 and all(b.x0 - a.x1 > a.height / 2 for a, b in itertools.pairwise(boxes))
