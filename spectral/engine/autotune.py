"""Which engine multiplies: tried on the first batch, held to its way's products, timed, and kept as far as memory goes.

A program is recorded only where what it is expected to hold meanwhile fits into the store's budget, trials included, and is
given up at the first constant that does not fit. Programs of later batches are held to what was computed while they were
recorded; one that differs is not used.

Legend: n columns and m rows of a batch's linear map, b vectors of a block; blocks are (b, n) and (b, m), one vector a row.
A product is given in pieces that follow one another, such as the gradients of the parameters, so that none is copied.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from spectral import arrays, longvectors, probes
from spectral.engine import linearize, trace
from spectral.engine.store import Store

Linear = trace.Linear
COMPILE = 600.0  # auto compiles only a run that is predicted to take longer [s]: compiling takes up to a minute
RECORD = 4  # auto records only if at least so many products are to come
PREFERRED = {
    "replay": 0.8,
    "compiled": 0.8,
    "fresh": 0.9,
}  # times count so much: near ties go the same way in every run
TRIAL = 10  # products a column that a block's program must serve: trying it takes about three, and it saves some tenths of one
BLOCK = 8  # vectors that a program takes at a time, at most
FAILURES = (
    RuntimeError,
    NotImplementedError,
    AssertionError,
    TypeError,
    ValueError,
)  # what torch raises where it cannot


@dataclass
class Maps:
    """One batch taken in one way: linear maps v (n,) -> (m,) by kind, and its error of the adjoint identity."""

    table: Mapping[str, Linear]
    # the error of v and its product; linearize.Wrong if it is no rounding
    test: Callable[[torch.Tensor, trace.Pieces], float]
    bytes: int = 0  # that keeping it takes
    allowed: float = 1e-9  # how far a program's products may be off by rounding


@dataclass(frozen=True)
class Trial:
    """An engine on the first batch: its error, seconds of its first product (recording included) and of a later one.

    The error is that of the adjoint identity for a way, the relative distance from its way's products for a program.
    """

    way: str
    error: float
    first: float
    later: float
    bytes: int  # that keeping it takes
    held: int = 0  # that recording it held meanwhile

    def seconds(self, products: int, relative: float = 1.0) -> float:
        """What so many products take on the first batch, or on one `relative` times as large: recording takes what it takes."""
        return self.first - self.later + products * relative * self.later


@dataclass
class Choice:
    """What holds on this model for one kind of product: `trials` of the engines that do, `failures` of the others."""

    asked: str
    trials: dict[str, Trial]
    failures: list[str]
    block: str = ""  # how blocks are multiplied, once one has been
    best: str = ""  # what is used now
    allowed: float = 0.0  # how far products may be off by rounding
    recorded: bool = False  # whether programs have been tried, or are known not to fit into memory
    relative: float = 1.0  # size of what is multiplied over that of the first batch: batches may be joined

    def _allowed(self) -> dict[str, Trial]:
        return {self.asked: self.trials[self.asked]} if self.asked in self.trials else self.trials

    def kept(self, products: int) -> str:
        """The engine that is fastest for so many products when it is kept: recording must pay for itself."""
        allowed = self._allowed()
        return min(allowed, key=lambda name: PREFERRED.get(name, 1.0) * allowed[name].seconds(products, self.relative))

    def once(self, columns: int = 1, programs: bool = True) -> str:
        """The engine that is fastest for one visit to a batch with so many vectors, when nothing is kept."""
        allowed = {
            name: trial
            for name, trial in self.trials.items()
            if name in linearize.WAYS or (programs and name != "compiled")
        }
        if self.asked in ("fresh", "double-backward"):
            allowed = self._allowed()
        return min(allowed, key=lambda name: PREFERRED.get(name, 1.0) * allowed[name].seconds(columns))

    def describe(self, products: int) -> dict[str, Any]:
        """Plain JSON: the engine, why, and what each one takes on the first batch."""
        best = self.kept(products)
        why = f"fastest for {products} products of those that hold on three calls"
        return {
            "engine": best,
            "reason": "; ".join(["asked for" if self.asked != "auto" else why, *self.failures]),
            **({"block": self.block} if self.block else {}),
            "adjoint_error": max(t.error for t in self.trials.values() if t.way == self.trials[best].way),
            "seconds_first_batch": {name: round(trial.later, 6) for name, trial in self.trials.items()},
        }


class Runner:
    """Multiplies one batch, vector by vector or by a program for several."""

    def __init__(self, one: Linear, several: trace.Program | None = None, width: int = 1) -> None:
        self.one, self.several, self.width = one, several, width

    @property
    def recorded(self) -> bool:
        """Whether it multiplies by a program, without the model."""
        return isinstance(self.one, trace.Program)

    def add(self, V: torch.Tensor, W: torch.Tensor, new: bool = False) -> None:
        """W (b, m) += the products with the rows of V (b, n), or W = these if `new`."""
        at = 0
        while at < len(V):
            part, sums = V[at : at + self.width], W[at : at + self.width]
            if self.several is None or 2 * len(part) < self.width:
                for v, w in zip(part, sums, strict=True):
                    if isinstance(self.one, trace.Program):
                        self.one.add(v, w, new)
                    else:
                        trace.add_pieces(w, self.one(v), new)
            elif len(part) == self.width:
                self.several.add(part, sums, new)
            else:
                full = torch.cat([part, part.new_zeros(self.width - len(part), V.shape[1])])
                trace.add_pieces(sums, tuple(piece[: len(part)] for piece in self.several(full)), new)
            at += len(part)


@dataclass
class Engine:
    """Chooses on the first batch, then hands out a `Runner` for each batch and kind of product."""

    asked: str = "auto"
    ways: tuple[str, ...] = tuple(linearize.WAYS)
    check: bool = True  # hold the ways to the adjoint identity
    # names the operation and the module that have no derivative
    explain: Callable[[dict[str, Exception]], str] | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    store: Store = field(default_factory=Store)
    batches: int = 1
    visits: int = 1  # in a sweep: batches may be joined
    alike: bool = True  # both ways' programs do the same: the second way is tried only where the first fails
    _shared: dict[Any, Any] = field(default_factory=dict)  # block and compiled programs by their key
    _own: set[int] = field(default_factory=set)  # storages that are there anyway, of the batch at hand

    def __post_init__(self) -> None:
        if self.asked not in linearize.ENGINES:
            raise ValueError(f"engine={self.asked!r} is no engine; use one of {', '.join(linearize.ENGINES)}.")

    # One batch -------------------------------------------------------------------------------------------------------
    def runner(
        self,
        kind: str,
        index: int,
        make: Callable[[str], Maps],
        v: torch.Tensor,
        own: set[int],
        *,
        version: Callable[[], Any],
        expected: int,
        columns: int,
        relative: float = 1.0,
        trial: tuple[Callable[[str], Maps], torch.Tensor] | None = None,
        recording: int = 0,
    ) -> Runner:
        """The runner of batch `index`: the one kept, or a new one, kept if it fits.

        `make(way)` takes the batch in a way; `v` (n,) is an example; `own` are storages that are there anyway. `trial`: make and
        v of the batch that engines are tried on, this one if None; `relative` is the size of this batch over that one's;
        `recording`: bytes that recording a program of that batch is expected to hold.
        """
        self._own = own
        kept = self.store.get((kind, index), version)
        choice = self._choice(kind, make, v, own, expected, relative, trial or (make, v), recording)
        choice.relative = relative if index == 0 else choice.relative
        name = choice.kept(expected)
        if name != choice.best:  # more products are to come than were, or fewer
            self.store.drop(kind)
            choice.best, kept = name, None
        if kept is None:
            size = int(choice.trials[name].bytes * relative)
            most = int(relative * max((trial.held for trial in choice.trials.values()), default=0))
            fits = self.store.room(size if name in linearize.WAYS else max(size, most), v.device)
            name = name if fits else choice.once(columns, self.store.room(most, v.device))
            kept = Runner(self._build(name, choice.trials[name].way, kind, make, v))
            if fits:
                self.store.put((kind, index), kept, size, version)
        if columns > 1 and kept.several is None and kept.width == 1:
            self._widen(kept, kind, v, columns, expected)
        return kept

    def _build(self, name: str, way: str, kind: str, make: Callable[[str], Maps], v: torch.Tensor) -> Linear:
        linear = make(way).table[kind]
        if name in linearize.WAYS:
            return linear
        choice = self.choices[kind]
        try:
            program = self._build_program(linear, v)
            program = self._compiled(program) if name == "compiled" else program
            expected = trace.flat(program.seen or linear(v))
            for call in range(1 if program.pure else linearize.CALLS):
                _hold(trace.flat(program(v)), expected, choice.allowed, call)
            program.seen = None
        except FAILURES as failure:  # only the first batch's has been tried
            choice.failures.append(f"{name} of a later batch: {_first_line(failure)}")
            return linear
        return program

    def _build_program(self, linear: Linear, v: torch.Tensor) -> trace.Program:
        return self._summing(trace.record(linear, v, self.store.left(v.device), self._own))

    def _summing(self, program: trace.Program) -> trace.Program:
        """The program with its adder, which programs of one key share."""
        if program.pure:
            key = ("sum", program.key())
            if key not in self._shared:
                self._shared[key] = program.adder(), program.adder(new=True)
            program.sum, program.put = self._shared[key]
        return program

    def _compiled(self, program: trace.Program) -> trace.Program:
        key = program.key()
        if key not in self._shared:
            self._shared[key] = torch.compile(program.module, dynamic=False, options={"layout_optimization": False})
        program.run, program.sum, program.put = self._shared[key], None, None
        return program

    # The first batch -------------------------------------------------------------------------------------------------
    def _choice(
        self, kind: str, make: Callable[[str], Maps], v: torch.Tensor, own: set[int], expected: int, relative: float,
        trial: tuple[Callable[[str], Maps], torch.Tensor], recording: int,
    ) -> Choice:  # fmt: skip
        """Ways are tried at the first product, programs once enough products are to come, where recording them fits."""
        if kind not in self.choices:
            self.choices[kind] = self._choose_way(kind, *trial)
        choice = self.choices[kind]
        wanted = self.asked not in linearize.WAYS and (self.asked != "auto" or expected >= RECORD)
        if wanted and not choice.recorded and self._may_record(choice, recording, v.device):
            choice.recorded = True
            replay = self._try_replay(choice, kind, *trial, own)
            long = replay is not None and expected * self.batches * replay.later > COMPILE
            fits = replay is not None and self.store.room(int(recording * relative), v.device)
            if replay is not None and fits and (self.asked == "compiled" or (self.asked == "auto" and long)):
                try:  # on the batch itself: another size would be compiled again
                    found = self._try_program(kind, replay.way, make, v, own, compiled=True)
                    choice.trials["compiled"] = replace(
                        found,
                        first=found.first / relative,
                        later=found.later / relative,
                        bytes=int(found.bytes / relative),
                        held=int(found.held / relative),
                    )
                except (*FAILURES, OSError, ImportError) as failure:  # no compiler on this machine, say
                    choice.failures.append(f"compiled: {_first_line(failure)}")
        return choice

    def _may_record(self, choice: Choice, recording: int, device: torch.device) -> bool:
        """Whether a trial fits beside what is kept now; where it exceeds the whole budget it is never made, and noted."""
        if self.store.room(recording, device):
            return True
        if recording > (self.store.budget or 0):
            choice.recorded = True
            choice.failures.append(
                f"replay: recording would hold about {recording / 2**20:.3g} MiB, more than the "
                f"{(self.store.budget or 0) / 2**20:.3g} MiB of memory="
            )
        return False

    def _choose_way(self, kind: str, make: Callable[[str], Maps], v: torch.Tensor) -> Choice:
        choice = Choice(self.asked, {}, [])
        problems: dict[str, Exception] = {}
        for way in (self.asked,) if self.asked in linearize.WAYS else self.ways:
            try:
                choice.trials[way] = self._try_way(kind, way, make, v)
            except FAILURES as failure:
                problems[way] = failure
                choice.failures.append(f"{way}: {_first_line(failure)}")
            else:
                if self.alike:
                    break
        if not choice.trials:
            named = self.explain(problems) if self.explain is not None else ""
            raise ValueError(
                f"no engine multiplies this matrix ({named or '; '.join(choice.failures)}); give what fails a derivative, or "
                "replace it by torch operations."
            ) from next(iter(problems.values()))
        return choice

    def _try_replay(
        self, choice: Choice, kind: str, make: Callable[[str], Maps], v: torch.Tensor, own: set[int]
    ) -> Trial | None:
        recorded: list[Trial] = []
        for way in self.ways:
            if recorded and self.alike:
                break
            try:
                if way not in choice.trials:  # the first way holds, but is no program
                    choice.trials[way] = self._try_way(kind, way, make, v)
                recorded.append(self._try_program(kind, way, make, v, own))
            except FAILURES as failure:
                named = f"{way}: {_first_line(failure)}"
                if not any(known.endswith(named) for known in choice.failures):
                    choice.failures.append(f"replay of {named}")
        if not recorded:
            return None
        choice.trials["replay"] = min(recorded, key=lambda trial: trial.later)
        return choice.trials["replay"]

    def _try_way(self, kind: str, way: str, make: Callable[[str], Maps], v: torch.Tensor) -> Trial:
        for _ in range(2):  # the first time warms up
            begin = _now(v)
            maps = make(way)
            product = maps.table[kind](v)
            first = _now(v) - begin
        error, w = (maps.test(v, product) if self.check else 0.0), trace.flat(product)
        later, sound = [], self.check and arrays.all_finite(w)
        for call in range(2):  # one alone may be disturbed
            symmetric = call > 0 and sound and kind == "H v"
            u = probes.probe(1, 0, len(v), dtype=v.dtype, device=v.device) if symmetric else v
            begin = _now(v)
            again = maps.table[kind](u)
            later.append(_now(v) - begin)
            if sound and not symmetric:
                _hold(trace.flat(again), w, maps.allowed, call + 1)
            elif sound:
                _hold_symmetric(u, w, v, trace.flat(again), maps.allowed)
        return Trial(way, error, first, min(later), maps.bytes)

    def _try_program(
        self,
        kind: str,
        way: str,
        make: Callable[[str], Maps],
        v: torch.Tensor,
        own: set[int],
        *,
        compiled: bool = False,
    ) -> Trial:
        maps = make(way)
        linear, allowed = maps.table[kind], max(maps.allowed, arrays.discrepancy(v.dtype))
        self.choices[kind].allowed = allowed
        begin = _now(v)
        program = self._build_program(linear, v)
        if compiled:
            program = self._compiled(program)
        w = arrays.empty((sum(math.prod(shape) for shape in program.shapes),), v)
        program.add(v, w, new=True)
        first = _now(v) - begin
        errors, later = [], []
        for call in range(linearize.CALLS):
            u = probes.probe(call, 0, len(v), dtype=v.dtype, device=v.device)
            expected = trace.flat(linear(u))
            w.zero_()
            begin = _now(v)
            program.add(u, w, new=call > 0)  # both forms in which it will be used
            later.append(_now(v) - begin)
            errors.append(_hold(w, expected, allowed, call))
        return Trial(way, max(errors), first, min(later), program.bytes(own), program.held)

    # Blocks ----------------------------------------------------------------------------------------------------------
    def _widen(self, runner: Runner, kind: str, v: torch.Tensor, columns: int, expected: int) -> None:
        """Give the runner a program for several vectors, if the first batch's was faster than one by one."""
        choice, program = self.choices[kind], runner.one
        known = self._shared.get(("width", kind))
        if known == 1 or not isinstance(program, trace.Program):
            choice.block = choice.block or "one by one"
            return
        width = known or min(columns, BLOCK, self._fitting(program, v))
        if width < 2 or (known is None and expected * self.visits < TRIAL * width):
            return
        key = ("block", width, program.key())
        begin = _now(v)
        try:
            if key not in self._shared:
                self._shared[key] = program.batched(width).module
            several = self._summing(trace.Program(self._shared[key], program.constants))
            if program.run is not program.module:
                several = self._compiled(several)
            if known is None:
                faster, choice.block = self._compare(choice, program, several, v, width, _now(v) - begin, expected)
                self._shared["width", kind] = known = width if faster else 1
        except FAILURES as failure:
            self._shared["width", kind] = known = 1
            choice.block = f"one by one: vmap: {_first_line(failure)}"
        if known > 1:
            runner.several, runner.width = several, known

    def _fitting(self, program: trace.Program, v: torch.Tensor) -> int:
        """Vectors whose own intermediate values, about as large as the constants for each, fit into what is left."""
        each = max(1, program.bytes(set()) + 4 * v.numel() * v.element_size())
        return max(1, int(self.store.left(v.device) / each))

    def _compare(
        self, choice: Choice, program: trace.Program, several: trace.Program, v: torch.Tensor, width: int, built: float,
        expected: int,
    ) -> tuple[bool, str]:  # fmt: skip
        """Hold a block's program to single products and time both: (whether it is faster for the products to come, why)."""
        V = torch.stack([probes.probe(0, i, len(v), dtype=v.dtype, device=v.device) for i in range(width)])
        m = sum(math.prod(shape) for shape in program.shapes)
        W, alone = arrays.empty((width, m), v), arrays.empty((width, m), v)
        several.add(V, W, new=True)
        begin = _now(v)
        for u, w in zip(V, alone, strict=True):
            program.add(u, w, new=True)
        single = (_now(v) - begin) / width
        error = float((W - alone).double().norm() / alone.double().norm().clamp(min=torch.finfo(torch.float64).tiny))
        if not error <= choice.allowed:
            raise linearize.Wrong(f"differs from single products by {error:.1e}")
        begin = _now(v)
        several.add(V, W, new=True)
        block = (_now(v) - begin) / width
        faster = built / self.visits + expected * block < expected * single
        why = f"{block:.2e} s each by vmap of {width}, {single:.2e} s alone, on what is multiplied first"
        return faster, f"{'vmap' if faster else 'one by one'}: {why}"

    def clear(self) -> None:
        """Forget what was kept (not what was chosen)."""
        self.store.clear()


def _hold(w: torch.Tensor, expected: torch.Tensor, allowed: float, call: int) -> float:
    """The relative distance of a program's product from a fresh one, if it is rounding; `Wrong` if not."""
    scale, difference = longvectors.norm(expected), longvectors.norm(w - expected)
    error = difference / scale if scale > 0 else difference
    if not error <= allowed:
        raise linearize.Wrong(f"differs from a fresh product by {error:.1e} on call {call + 1}")
    return error


def _hold_symmetric(u: torch.Tensor, Av: torch.Tensor, v: torch.Tensor, Au: torch.Tensor, allowed: float) -> None:
    """`Wrong` where <u, A v> and <v, A u> differ, u Gaussian: forward mode sees what lies under no_grad, gradients do not.

    Their standard deviation is ||A v||, as in `linearize.adjoint_error`.
    """
    scale = max(longvectors.norm(Av), longvectors.norm(Au) * longvectors.norm(v) / longvectors.norm(u))
    error = abs(longvectors.dot(u, Av) - longvectors.dot(v, Au)) / scale if scale > 0 else 0.0
    if not error <= allowed:
        raise linearize.Wrong(f"<u, H v> and <v, H u> differ by {error:.1e}")


def _first_line(failure: Exception) -> str:
    text = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    return re.sub(r"\s+", " ", text)[:200]


def _now(v: torch.Tensor) -> float:
    """The clock, after the device has done what it was asked."""
    if v.device.type == "cuda":
        torch.cuda.synchronize(v.device)
    return time.perf_counter()
