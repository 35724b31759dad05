"""Spectra while a network trains, for a stated share of the time.

    watcher = Watcher(lambda: spectral.Hessian(model, loss, batches), every=50)
    for step, batch in enumerate(loader):
        ...                               # any training step
        watcher(step)

The operator is made once, on data that stay the same; it multiplies by the weights of now. What a reading costs is learnt as it
goes: allowance grows with every second of training, a reading begins once there is enough for it, and what comes too late is
skipped and said so. Of several readings that wait, the kind that has taken the least time so far comes first, and none overtakes
it: where the share is short, the kinds have equal parts of it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spectral import arrays, distributed, persist, plotting
from spectral.estimators.critical_sharpness import critical_sharpness
from spectral.estimators.slq import slq
from spectral.estimators.top import top
from spectral.estimators.trace import trace
from spectral.failures import first_line
from spectral.networks.batches import random_state_kept
from spectral.operators.foreign import as_operator
from spectral.operators.operator import Operator
from spectral.readings import HISTORY, KINDS, Reading, Skipped, events, interval, plain
from spectral.results import Estimate
from spectral.schema import POSITIVE, function, integer, number
from spectral.spectrum import Spectrum
from spectral.version import __version__

Watched = tuple[Callable[..., Any], dict[str, Any]]
WATCHED: dict[str, Watched] = {  # what makes a reading, with the options that nobody gave
    "top": (top, {"k": 1, "tol": 1e-2}),
    "trace": (trace, {"probes": 10}),
    "esd": (slq, {"probes": 1, "steps": 30, "deflate": False}),
    "critical_sharpness": (critical_sharpness, {}),
}
OURS = {"A", "start", "guess", "budget", "checkpoint", "progress"}  # options that the watcher gives itself
# These need not know what a product takes: one has a budget in seconds, the other makes none.
UNASKED = ("top", "critical_sharpness")
FIRST = 2.0  # training steps that making the operator is expected to take, before it was made
SPARE = 1.25  # times what a reading has taken: what must be there before it begins
# Readings of every kind that may be saved for: what training earns beyond is forgotten, and no burst follows.
SAVED = 2.0


class Watcher:
    """Eigenvalues, trace and density of a matrix while a network trains: call it after each step, `watcher(step)`.

    The network is left as it was: mode, gradients, buffers, random states. Watching takes at most `share` of the time that
    training takes, counted from the first call; what this leaves no time for is postponed, then skipped, and recorded as such.

    Parameters
    ----------
    make_operator : callable
        () -> an operator of the model that trains, on data that stay the same: `lambda: spectral.Hessian(model, loss, batches)`.
        It is called once, when there is time for it. A few samples tell as much of the spectrum as many for less.
    every : int
        Training steps from one reading to the next, 1 or more.
    share : float, optional
        Seconds of watching for each second of training, above 0; making the operator and writing files count. None: every reading
        is made when it is due.
    what : sequence or dict
        Of "top" (largest eigenvalues, warm-started), "trace", "esd" (the whole density) and "critical_sharpness" (a gradient and
        4 to 6 forward passes, the cheapest). A dict gives options of `top`, `trace`, `slq` and `critical_sharpness`:
        {"top": {"k": 5, "tol": 1e-3}}; a `direction` may be a callable that is asked anew each time.
    folder : path, optional
        Where the history is kept as it grows: history.jsonl, a line for each event, and a file for each density. A later watcher
        with the same folder goes on with it; of an earlier session, what comes at or after its first step is superseded.
    log : optional
        Where numbers go besides: a callable (numbers, step), a TensorBoard SummaryWriter, a Weights & Biases run, a logger of
        Lightning, or "tensorboard" (beside the history) or "wandb" (the run that is under way).
    clock : callable
        () -> seconds; `time.process_time` counts those of the processor.

    Attributes
    ----------
    readings : list of Reading
        All of the history, in their order.
    skipped : list of Skipped
        What was asked for and not made.
    operator : Operator or None
        Once it was made.
    trained, watched : float
        Seconds between the calls, and inside of them.

    Raises
    ------
    TypeError
        For a make_operator that is no callable, options that the estimators do not have, and a log that takes no numbers.
    ValueError
        For an unknown kind of reading, numbers that do not fit, steps that go back, and a folder whose history is damaged or
        cannot be written. What the first reading of a kind raises is raised; a later one that fails is recorded with a warning,
        and training goes on.

    Notes
    -----
    `top` starts from the vectors of the reading before, with another random direction each time; `trace` and `esd` take the same
    random vectors each time, so that what changes is the matrix.

    Readings wait until there is SPARE = 1.25 times what such a reading took before, at first what its products are expected to
    take. What making the operator takes nobody knows beforehand: it is made once two training steps' time has been earned, and
    what it takes beyond that is earned before anything else begins. The time that is left is also the budget of `top`, whose
    products nobody knows beforehand; where it ends early the reading is not `complete`, and the next one waits for twice as
    long. In a torch.distributed group every rank calls it, and rank 0 decides and writes.

    References
    ----------
    - Cohen, Kaur, Li, Kolter, Talwalkar (2021), Gradient descent on neural networks typically occurs at the edge of stability,
      ICLR.
    - Kalra et al. (2026), A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs,
      arXiv:2601.16979.

    Examples
    --------
    >>> A = np.diag([1.0, 2.0])
    >>> watcher = Watcher(lambda: A, every=10, share=None, what=("top", "trace"))
    >>> for step in range(30):
    ...     A[1, 1] += 0.1
    ...     made = watcher(step)
    >>> watcher.history("top")["eigenvalue_1"].round(6).tolist()
    [2.1, 3.1, 4.1]
    """

    def __init__(
        self,
        make_operator: Callable[[], Any],
        *,
        every: int,
        share: float | None = 0.05,
        what: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("top", "trace", "esd"),
        folder: Any = None,
        log: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        function(make_operator, "make_operator", "nothing that makes the operator")
        self.every = integer(every, "every", "number of training steps")
        if share is not None:
            number(share, "share", "share of the time (None: no limit)", POSITIVE)
        self.make_operator, self.share, self.clock = make_operator, share, clock
        self.options = _options(what)
        self.readings: list[Reading] = []
        self.skipped: list[Skipped] = []
        self.operator: Operator | None = None
        self.trained = self.watched = 0.0
        self.folder = None if folder is None else persist.own(folder)
        self.session = 0
        self._log = _logger(log, self.folder)
        self._calls, self._allowance = 0, 0.0
        self._begun = self._left = math.nan  # when the latest call began, and when it ended
        self._step = self._due = -1  # of the latest call
        self._waiting: dict[str, int] = {}  # kinds of readings that are due, and since which step
        self._costs: dict[str, float] = {}  # seconds that the next reading of a kind is expected to take
        self._taken = dict.fromkeys(self.options, 0.0)  # seconds of each kind so far
        self._built = self._product = math.nan  # seconds of making the operator, and of a product
        self._vectors: Any = None  # of the latest eigenpairs
        self._read_before: set[str] = set()  # kinds that have worked
        if self.folder is not None:
            history = self.folder / HISTORY
            distributed.by_first(lambda: str(persist.claim(history)))
            self._read_history(history)

    def __getstate__(self) -> Any:
        raise TypeError(
            "A Watcher belongs to the network that trains here, and can be neither pickled nor copied; make one where the "
            "training runs: with the same folder= it goes on with the history."
        )

    def __getattr__(self, name: str) -> Any:
        hook = name == "setup" or name.startswith("on_")  # what trainers ask of their callbacks
        way = "; give a trainer watcher.trainer_callback() or watcher.lightning_callback()" if hook else ""
        raise AttributeError(f"a Watcher has no {name}{way}.")

    # At each step -----------------------------------------------------------------------------------------------------
    def __call__(self, step: int) -> list[Reading]:
        """Say which step has ended; the readings that were made now, most often none."""
        with self._on_the_clock(step):
            self._mark(step)
            made: list[Reading] = []
            while self._waiting:
                what, room, enough = distributed.first(self._next())
                if not enough:
                    break
                if self.operator is None:
                    self._build()
                elif what not in UNASKED and room < math.inf and math.isnan(self._product):
                    self._time_product()
                else:
                    reading = self._read(what, step, self._waiting.pop(what), room)
                    made += [] if reading is None else [reading]
            return made

    def read(self, step: int, *what: str) -> list[Reading]:
        """Make readings now, whatever the share: at the beginning, say, or at the end. They count, so that later ones wait.

        Parameters
        ----------
        step : int
            Of the training.
        *what : str
            Kinds among those that are watched; by default all.

        Returns
        -------
        list of Reading
            In this order.

        Raises
        ------
        ValueError
            For a kind that is not watched, and a step before the latest.

        Examples
        --------
        >>> watcher = Watcher(lambda: np.diag([1.0, 2.0]), every=100, what=("top", "trace"))
        >>> float(watcher.read(0, "trace")[0].estimates["trace"])
        3.0
        """
        for kind in what:
            if kind not in self.options:
                raise ValueError(f"{kind!r} is not watched; use {', '.join(self.options)}.")
        with self._on_the_clock(step):
            if self.operator is None:
                self._build()
            made = [self._read(kind, step, self._waiting.pop(kind, step), math.inf) for kind in what or self.options]
            return [reading for reading in made if reading is not None]

    def close(self) -> None:
        """Say that training has ended: what was still waiting is recorded as skipped.

        Examples
        --------
        >>> watcher = Watcher(lambda: np.eye(2), every=1, what=("trace",))
        >>> made = watcher(0)
        >>> watcher.close()
        >>> watcher.skipped[0].reason
        'training ended before there was time for it'
        """
        for what, due in self._waiting.items():
            self._skip(what, self._step, due, "training ended before there was time for it")
        self._waiting = {}

    @contextmanager
    def _on_the_clock(self, step: int) -> Iterator[None]:
        """What passes inside is watching, what has passed since the last time was training, and earns allowance."""
        step, now = integer(step, "step", "training step", 0), self.clock()
        if step < self._step:
            raise ValueError(
                f"step={step} comes before {self._step}, where this watcher was; a training that begins anew takes a new watcher."
            )
        if self._step < 0:
            self._begin_session(step)
        else:
            self.trained += now - self._left
            self._calls += 1
            known = len(self._costs) == len(self.options)
            most = SAVED * sum(self._costs.values()) * SPARE if known else math.inf
            earned = self._allowance + (self.share or 0.0) * (now - self._left)
            self._allowance = max(min(earned, most), self._allowance)
        self._step, self._begun = step, now
        try:
            with random_state_kept(()):
                yield
        finally:
            self._left = self.clock()
            self.watched += self._left - now
            self._allowance -= self._left - now

    def _mark(self, step: int) -> None:
        """Note what is due by this step; what was waiting for an earlier one is skipped."""
        due = step // self.every * self.every
        if due <= self._due:
            return
        for what in self.options:
            if what in self._waiting:
                needs = f"{SPARE * self._need(what):.3g} s are needed and {max(self._allowance, 0.0):.3g} s are there"
                self._skip(what, step, self._waiting[what], f"the next was due before there was time for it: {needs}")
            self._waiting[what] = due
        self._due = due

    def _next(self) -> tuple[str, float, bool]:
        """Which reading comes next, the seconds that are there for it, and whether they are enough."""
        if self.share is None:
            return next(iter(self._waiting)), math.inf, True
        what = min(self._waiting, key=lambda kind: self._taken[kind])
        room = self._allowance - (self.clock() - self._begun)
        return what, room, SPARE * self._need(what) <= room

    def _need(self, what: str) -> float:
        """Seconds that the next thing to do for a reading of this kind is expected to take."""
        if self.operator is None:
            return FIRST * self.trained / self._calls if self._calls else math.inf
        if what in self._costs:
            return self._costs[what]
        if what in UNASKED or math.isnan(self._product):
            return self._built / 2
        options = self.options[what]
        products = float(options["probes"] or 20) * (options["steps"] or 100 if what == "esd" else 1)
        return products * self._product

    def _build(self) -> None:
        begun = self.clock()
        made = self.make_operator()  # in the autocast of the training, if that is on, as the model is there
        with arrays.without_autocast():
            self.operator = as_operator(made)
        self._built = self.clock() - begun
        self._write("operator", seconds=self._built, operator=self.operator.describe())

    def _time_product(self) -> None:
        """The second of two products: the first is also tested."""
        A: Any = self.operator
        A @ A.probe(0, 0)
        begun = self.clock()
        A @ A.probe(0, 1)
        self._product = self.clock() - begun

    # A reading --------------------------------------------------------------------------------------------------------
    def _read(self, what: str, step: int, due: int, room: float) -> Reading | None:
        """Make one, for which there are `room` seconds; None where it failed and was skipped."""
        A: Any = self.operator
        begun, products = self.clock(), A.products
        try:
            with arrays.without_autocast():
                estimates, complete, spectrum = self._measured(what, room)
        except (ValueError, RuntimeError, ArithmeticError) as problem:
            if what not in self._read_before:
                raise
            self._count(what, begun, False)
            warnings.warn(f"the reading of {what} at step {step} failed: {first_line(problem)}", stacklevel=4)
            self._skip(what, step, due, f"it failed: {first_line(problem)}")
            return None
        self._read_before.add(what)
        kept: Any = spectrum
        if spectrum is not None and self.folder is not None:
            path = self.folder / f"esd-{self.session}-{step}.npz"
            if distributed.leads():
                with persist.forgiving(path):
                    spectrum.save(path)
            kept = path
        seconds = self._count(what, begun, complete)
        if A.products > products:
            self._product = seconds / (A.products - products)
        reading = Reading(what, step, due, estimates, complete, seconds, A.products - products, kept)
        self.readings.append(reading)
        self._write(
            "reading", step=step, due=due, what=what, seconds=seconds, products=reading.products, complete=complete,
            estimates={name: [plain(x) for x in (e.value, e.stderr, e.lower, e.upper)] for name, e in estimates.items()},
            file=kept.name if isinstance(kept, Path) else None,
        )  # fmt: skip
        if self._log is not None and estimates and distributed.leads():
            self._log(reading.numbers(), step)
        return reading

    def _count(self, what: str, begun: float, complete: bool) -> float:
        """Seconds of a reading; one that was cut short is expected to need twice as long."""
        seconds = self.clock() - begun
        self._taken[what] += seconds
        self._costs[what] = seconds if complete else 2 * seconds
        return seconds

    def _measured(self, what: str, room: float) -> tuple[dict[str, Estimate], bool, Spectrum | None]:
        A, options = self.operator, dict(self.options[what])
        if what == "top":
            number = sum(reading.what == "top" for reading in self.readings)
            options["seed"] = options.get("seed", 0) + number
            budget = None if room == math.inf else f"{room:.6f}s"
            pairs = top(A, **options, start=self._vectors, budget=budget, progress=False)
            self._vectors = pairs.vectors
            return pairs.estimates(), bool(pairs.complete and pairs.converged.all()), None
        if what == "trace":
            return {"trace": trace(A, **options, progress=False)}, True, None
        if what == "esd":
            return {}, True, slq(A, **options, progress=False)
        if callable(options.get("direction")):
            options["direction"] = options["direction"]()
        before = [float(r.estimates[what]) for r in self.readings if r.what == what]
        near = [value for value in before if 0 < value < math.inf]
        found = critical_sharpness(A, **options, guess=near[-1] if near else None)
        return {what: found}, True, None

    # The history ------------------------------------------------------------------------------------------------------
    def _skip(self, what: str, step: int, due: int, reason: str) -> None:
        self.skipped.append(Skipped(what, step, due, reason))
        self._write("skipped", step=step, due=due, what=what, reason=reason)

    def _begin_session(self, step: int) -> None:
        self._supersede(step)
        told = {what: {name: str(value) for name, value in options.items()} for what, options in self.options.items()}
        self._write("session", step=step, every=self.every, share=self.share, what=told, version=__version__)

    def _supersede(self, step: int) -> None:
        """What an earlier session has read from this step on is no longer of this training."""
        self.readings = [reading for reading in self.readings if reading.step < step]
        self.skipped = [skipped for skipped in self.skipped if skipped.due < step]

    def _write(self, event: str, **told: Any) -> None:
        if self.folder is not None and distributed.leads():
            path = self.folder / HISTORY
            with persist.forgiving(path):
                persist.append_line(path, json.dumps({"event": event, **told}, allow_nan=False))

    def _read_history(self, path: Path) -> None:
        """What earlier sessions have left."""
        for event, told in events(path):
            if event == "session":
                self._supersede(told["step"])
                self.session += 1
            elif event == "skipped":
                self.skipped.append(Skipped(**told))
            elif event == "reading":
                each = told.pop("estimates").items()
                estimates = {name: Estimate(value, error, low, high) for name, (value, error, low, high) in each}
                file = told.pop("file")
                spectrum = None if file is None else path.parent / file
                self.readings.append(Reading(**told, estimates=estimates, spectrum=spectrum))

    def history(self, what: str) -> dict[str, np.ndarray]:
        """The numbers of one kind of reading, over the steps of the training.

        Parameters
        ----------
        what : str
            "top", "trace" or "critical_sharpness".

        Returns
        -------
        dict of str to numpy.ndarray
            `step`, and for each number NAME (eigenvalue_1, ...) NAME, NAME_lower and NAME_upper, (R,).

        Examples
        --------
        >>> watcher = Watcher(lambda: np.diag([1.0, 2.0]), every=1, share=None, what=("trace",))
        >>> made = watcher(0), watcher(1)
        >>> watcher.history("trace")["trace"].tolist()
        [3.0, 3.0]
        """
        of = [reading for reading in self.readings if reading.what == what]
        found = {"step": np.array([reading.step for reading in of])}
        for name in of[0].estimates if of else ():
            each = [reading.estimates[name] for reading in of]
            lower, upper = np.array([interval(e) for e in each]).T
            found |= {name: np.array(list(map(float, each))), f"{name}_lower": lower, f"{name}_upper": upper}
        return found

    def spectra(self) -> dict[int, Spectrum]:
        """The densities by the steps at which they were read, from their files where there is a folder.

        Returns
        -------
        dict of int to Spectrum
            {step: spectrum}.

        Examples
        --------
        >>> watcher = Watcher(lambda: np.diag([1.0, 2.0]), every=1, share=None, what=("esd",))
        >>> made = watcher(0)
        >>> watcher.spectra()[0].dim
        2
        """
        of = [reading for reading in self.readings if reading.what == "esd"]
        return {r.step: Spectrum.load(r.spectrum) if isinstance(r.spectrum, Path) else r.spectrum for r in of}

    def __str__(self) -> str:
        share = 100 * self.watched / self.trained if self.trained > 0 else 0.0
        step = max([self._step, 0, *(reading.step for reading in self.readings[-1:])])
        part = f" ({share:{'.2g' if share < 10 else ',.0f'}} % of training)" if share else ""
        return (
            f"{len(self.readings)} readings by step {step}, {len(self.skipped)} skipped; watching took "
            f"{self.watched:.3g} s, training {self.trained:.3g} s{part}"
        )

    # Pictures ---------------------------------------------------------------------------------------------------------
    def plot(self, ax: Any = None) -> Any:
        """Draw what was read over the steps of the training (matplotlib): densities as a waterfall, numbers with their errors.

        Parameters
        ----------
        ax : matplotlib axes, optional
            For the waterfall alone; by default a figure with a panel for each kind of reading.

        Returns
        -------
        Figure or Axes
            The figure, or `ax`.

        Raises
        ------
        ValueError
            Where nothing was read, or no density for `ax`.

        Examples
        --------
        >>> watcher = Watcher(lambda: np.diag([1.0, 2.0]), every=1, share=None)
        >>> made = watcher(0), watcher(1)
        >>> len(watcher.plot().axes)            # top, trace, the waterfall and its colours
        4
        """
        import matplotlib.pyplot as plt

        spectra = self.spectra()
        kinds = [what for what in self.options if what != "esd" and len(self.history(what)["step"])]
        if not spectra and (ax is not None or not kinds):
            raise ValueError(
                f"nothing was read that could be drawn: {self}; a larger share=, share=None or watcher.read(step) reads more."
            )
        if ax is not None:
            return plotting.waterfall(spectra, ax)
        # a waterfall has its colours beside it, and powers on both sides of 0
        widths = [3.6] * len(kinds) + [5.4] * bool(spectra)
        figure, axes = plt.subplots(
            1, len(widths), figsize=(sum(widths), 3.2), squeeze=False, gridspec_kw={"width_ratios": widths}
        )
        for what, panel in zip(kinds, axes[0], strict=False):
            plotting.over_steps(self.history(what), panel, what.replace("_", " "))
        if spectra:
            plotting.waterfall(spectra, axes[0, -1])
        figure.tight_layout()
        return figure

    # In other people's loops ------------------------------------------------------------------------------------------
    def trainer_callback(self) -> Any:
        """A `transformers.TrainerCallback` that calls this watcher after each step of a `Trainer`.

        Returns
        -------
        transformers.TrainerCallback
            For `Trainer(..., callbacks=[...])`.

        Examples
        --------
        >>> callback = Watcher(lambda: np.eye(2), every=10).trainer_callback()      # doctest: +SKIP
        """
        watcher = self

        class Watching(_package("transformers", "trainer_callback()").TrainerCallback):  # type: ignore[misc]
            __getstate__ = watcher.__getstate__  # before pickle asks for a class that it does not find

            def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                watcher(state.global_step)

            on_step_end = on_train_begin

            def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                watcher.close()

        return Watching()

    def lightning_callback(self) -> Any:
        """A Lightning `Callback` that calls this watcher after each batch; numbers go to the trainer's loggers, and to `log`.

        Returns
        -------
        lightning.pytorch.Callback
            For `Trainer(callbacks=[...])`.

        Examples
        --------
        >>> callback = Watcher(lambda: np.eye(2), every=10).lightning_callback()      # doctest: +SKIP
        """
        watcher = self

        class Watching(_package("lightning.pytorch", "lightning_callback()").Callback):  # type: ignore[misc]
            __getstate__ = watcher.__getstate__

            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                self._call(trainer)

            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                self._call(trainer)

            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                watcher.close()

            def _call(self, trainer: Any) -> None:
                for reading in watcher(trainer.global_step):
                    for logger in trainer.loggers if reading.estimates else ():
                        logger.log_metrics(reading.numbers(), step=reading.step)

        return Watching()


def _options(what: Any) -> dict[str, dict[str, Any]]:
    """The options of each kind of reading, or one sentence."""
    names = [what] if isinstance(what, str) else list(what)
    if not names or len(set(names)) < len(names) or not set(names) <= set(KINDS):
        raise ValueError(f"what={what!r} are no kinds of readings; use some of {', '.join(KINDS)}, each once.")
    given: Mapping[str, Any] = what if isinstance(what, Mapping) else {}
    for name, options in given.items():
        known = set(inspect.signature(WATCHED[name][0]).parameters) - OURS
        if not isinstance(options, Mapping) or not set(options) <= known:
            raise TypeError(
                f"what[{name!r}]={options!r} are no options of it; use a dict of {', '.join(sorted(known))}."
            )
    return {name: {**WATCHED[name][1], **given.get(name, {})} for name in names}


def _package(name: str, asked: str, install: str = "'spectral[watch]'") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise ImportError(f"{asked} needs {name} ({first_line(problem)}); run: pip install {install}.") from problem


class _Wandb:
    """A run of Weights & Biases, or the package, whose run is under way: numbers over an axis of their own, "watched step".

    The run's own counter moves on with each call of the training's `log`, and numbers for a step that it has passed are dropped.
    They join what is logged next (commit=False); where nothing else has been logged since the step before, that is closed first.
    """

    AXIS = "watched step"

    def __init__(self, source: Any) -> None:
        self.source, self.known, self.before = source, set[str](), (-1, -1)

    def __call__(self, numbers: dict[str, float], step: int) -> None:
        run = getattr(self.source, "run", self.source)
        if run is None:
            raise ValueError("log='wandb' and no run is under way; call wandb.init() before the first reading.")
        for name in numbers.keys() - self.known:
            run.define_metric(name, step_metric=self.AXIS)
        self.known |= numbers.keys()
        if step != self.before[0] and run.step == self.before[1]:
            run.log({}, commit=True)
        run.log({**numbers, self.AXIS: step}, commit=False)
        self.before = step, run.step


def _logger(log: Any, folder: Path | None) -> Callable[[dict[str, float], int], Any] | None:
    """What takes (numbers, step)."""
    if log == "tensorboard":
        if folder is None:
            raise ValueError("log='tensorboard' writes beside the history; give folder=, or a SummaryWriter.")
        _package("tensorboard", "log='tensorboard'")
        log = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    elif log == "wandb":
        log = _package("wandb", "log='wandb'", "wandb")
    if log is None:
        return None
    if hasattr(log, "define_metric"):
        return _Wandb(log)
    if hasattr(log, "add_scalar"):
        return lambda numbers, step: [log.add_scalar(name, value, step) for name, value in numbers.items()]
    if hasattr(log, "log_metrics"):
        return lambda numbers, step: log.log_metrics(numbers, step=step)
    if hasattr(log, "log"):
        return lambda numbers, step: log.log(numbers, step=step)
    if callable(log):
        given: Callable[[dict[str, float], int], Any] = log
        return given
    raise TypeError(
        f"log={log!r} takes no numbers; use a callable (numbers, step), a SummaryWriter, a wandb run, 'tensorboard' or 'wandb'."
    )
