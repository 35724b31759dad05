"""Which engine multiplies: chosen by the products that are made anyway, and held to them.

The first product of a kind is taken in a way (`linearize.WAYS`) that must pass its own tests; it is the answer, not a
rehearsal. Where enough products are to come, the other way takes a turn, and the faster of both goes on. Where recording pays
for itself and fits into memory, the first batch's product is also recorded as a program. The program multiplies beside the way
on CALLS products of that batch, is held to them and timed, and only then multiplies alone. Other batches are recorded while
their product is made, and their programs are held to it.

Legend: n columns and m rows of a batch's linear map, b vectors of a block; blocks are (b, n) and (b, m), one vector a row.
A product is given in pieces that follow one another, such as the gradients of the parameters, so that none is copied.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from spectral import arrays
from spectral.engine import linearize, trace
from spectral.engine.linearize import CALLS, DIFFERENCE, WAYS
from spectral.engine.store import Store
from spectral.failures import first_line

COMPILE = 600.0  # auto compiles only a run that is predicted to take longer [s]: compiling takes up to a minute
# Guesses before a candidate is measured, in first products and in present ones: the first batch's recording with its tests took 3
# to 6 of the former, another's, which makes the product that is asked for, 1 to 2, and they saved .05 to .5 of the latter on five
# models. The other way saves as much, and takes two products more at first where vectors weigh more than a model's arithmetic: it
# waits for TURN products, made or announced.
RECORDING, LATER, SAVED = 4.0, 1.5, 0.2
TURN = 10.0
RIVAL = 0.15  # what the other way's program may save of a Hessian's: 0 to .2 on five models
BETTER = 0.95  # a candidate must take less than this part of the time: near ties go the same way in every run
SERVE = 10  # products a column that a block's program must serve: trying it takes about three, and it saves some tenths of one
BLOCK = 8  # vectors that a program takes at a time, at most
ALONE = {*WAYS, DIFFERENCE}  # engines that are a way, of which nothing is recorded
CPU = torch.device("cpu")
# What torch raises where it cannot.
FAILURES = (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError)


@dataclass
class Maps:
    """One batch, linearised in one way: v (n,) -> the pieces of w (m,)."""

    product: trace.Linear
    check: Callable[[torch.Tensor, trace.Pieces], float]  # a product's error; `linearize.Wrong` if it is no rounding
    bytes: int = 0  # that keeping it takes
    allowed: float = 1e-9  # how far a program's products may be off by rounding


@dataclass(frozen=True)
class Workload:
    """One batch, or several as one, and the kind of product that it is multiplied by."""

    kind: str
    index: int  # of the first batch
    linearize: Callable[[str], Maps]  # by way
    samples: int = 1
    version: Callable[[], Any] = int  # of the model: what was kept of another one is stale
    own: Callable[[], set[int]] = set  # storages that are there anyway
    graph: int = 0  # bytes that recording is expected to hold
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether engines are chosen on this batch."""
        return self.index == 0


@dataclass(frozen=True)
class Ahead:
    """Products to come: in all, and in this visit to the batch."""

    coming: int
    left: int


@dataclass
class Timing:
    """Seconds of an engine on the first batch: of its first product, recording included, and of the fastest later one."""

    first: float
    later: float = math.inf
    bytes: int = 0  # that keeping it takes
    held: int = 0  # that recording it held meanwhile

    @property
    def each(self) -> float:
        """Of a product to come, as far as is known."""
        return min(self.first, self.later)


@dataclass
class Kept:
    """What is kept of one batch: its linearisation in a way, its program, and one for several vectors at a time."""

    way: str = ""
    maps: Maps | None = None
    program: trace.Program | None = None
    several: trace.Program | None = None
    width: int = 1
    bytes: int = 0  # of the program
    allowed: float = 0.0  # how far its products may be off by rounding


@dataclass
class Choice:
    """What is known of one kind of product: times of the engines that hold, failures of the others, what multiplies now."""

    asked: str
    ways: list[str]  # that have not failed, the present one first
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # of ways by their own tests, of programs from their way
    calls: dict[str, int] = field(default_factory=dict)  # on which an engine has been tested
    failures: list[str] = field(default_factory=list)
    problems: dict[str, Exception] = field(default_factory=dict)  # by way
    count: int = 0  # vectors so far
    samples: int = 1  # of the first batch
    program: str = ""  # "replay" or "compiled", while programs multiply or are tested
    settled: bool = False  # no program is tried any more
    without: set[int] = field(default_factory=set)  # batches that cannot be recorded
    block: str = ""  # how blocks are multiplied, once one has been

    @property
    def way(self) -> str:
        return self.ways[0]

    @property
    def proven(self) -> bool:
        """Whether programs have been seen to hold, on as many calls as it takes."""
        return self.calls.get(self.program, 0) >= CALLS

    @property
    def young(self) -> bool:
        """Whether the present way is still tested."""
        return self.calls.get(self.way, 0) < CALLS

    @property
    def engine(self) -> str:
        """What multiplies now."""
        return self.program if self.proven else self.way

    def note(self, name: str, seconds: float, error: float) -> None:
        """One more product of an engine; a recording has made its `Timing` before."""
        if name in self.timings:
            self.timings[name].later = min(self.timings[name].later, seconds)
        else:
            self.timings[name] = Timing(seconds)
        self.calls[name] = self.calls.get(name, 0) + 1
        self.errors[name] = max(self.errors.get(name, 0.0), error)

    def give_up(self, why: str) -> None:
        """No programs any more."""
        self.failures.append(f"{self.program or 'replay'}: {why}")
        self.timings.pop(self.program, None)
        self.program, self.settled = "", True

    def describe(self) -> dict[str, Any]:
        """Plain JSON: the engine, why, and what each one takes on the first batch."""
        why = "fastest of those that hold, by the products that were made"
        return {
            "engine": self.engine,
            "reason": "; ".join(["asked for" if self.asked != "auto" else why, *self.failures]),
            **({"block": self.block} if self.block else {}),
            "adjoint_error": self.errors.get(self.way, 0.0),
            "seconds_first_batch": {name: round(t.each, 6) for name, t in self.timings.items()},
        }


@dataclass
class Engine:
    """Multiplies batches, each kind of product by the engine that was chosen for it."""

    asked: str = "auto"
    ways: tuple[str, ...] = tuple(WAYS)
    check: bool = True  # hold the ways to their tests
    explain: Callable[[dict[str, Exception]], str] | None = None  # names what has no derivative
    turns: bool = True  # whether the second way is worth a try where the first holds
    choices: dict[str, Choice] = field(default_factory=dict)
    store: Store = field(default_factory=Store)
    groups: int = 1  # batches of a sweep, those that are joined counted once
    _shared: dict[Any, Any] = field(default_factory=dict)  # adders, block and compiled programs by their key

    def __post_init__(self) -> None:
        if self.asked not in linearize.ENGINES:
            raise ValueError(f"engine={self.asked!r} is no engine; use one of {', '.join(linearize.ENGINES)}.")

    @property
    def tests(self) -> bool:
        """Whether products to come are tested, those of a way that may take its turn soon included."""
        return self.check and any(
            not choice.proven and (choice.young or (self._waits(choice) and choice.count <= TURN))
            for choice in self.choices.values()
        )

    def _waits(self, choice: Choice) -> bool:
        """Whether the second way has not multiplied yet and might."""
        return len(choice.ways) > 1 and self.turns and not choice.program and choice.ways[1] not in choice.timings

    @property
    def settled(self) -> bool:
        """Whether nothing is tried any more, so that a product comes out to the same bits again."""
        tried = bool(self.choices) and all(
            choice.proven or not (choice.young or choice.program) for choice in self.choices.values()
        )
        return self.asked in ALONE or tried

    @property
    def recording(self) -> int:
        """Bytes that recording a program has held beside the store, at most."""
        return max((timing.held for choice in self.choices.values() for timing in choice.timings.values()), default=0)

    def multiply(self, work: Workload, V: torch.Tensor, W: torch.Tensor, new: bool, expected: int = 0) -> None:
        """W (b, m) += the products with the rows of V (b, n), or W = these if `new`; `expected` products were announced."""
        choice = self._choice(work.kind)
        kept = self.store.get((work.kind, work.index), work.version) or Kept()
        if work.leads:
            choice.samples = work.samples
        at = 0
        while at < len(V):
            coming = max(expected, choice.count + 1)
            width = self._width(work, choice, kept, V[at:], coming)
            part, sums = V[at : at + width], W[at : at + width]
            if width > 1:
                self._together(kept, part, sums, new)
            else:
                self._single(work, choice, kept, part[0], sums[0], new, Ahead(coming, len(V) - at))
            choice.count += len(part) if work.leads else 0
            at += width
        self._keep(work, kept)

    def _choice(self, kind: str) -> Choice:
        if kind not in self.choices:
            self.choices[kind] = Choice(self.asked, [self.asked] if self.asked in ALONE else list(self.ways))
        return self.choices[kind]

    def _keep(self, work: Workload, kept: Kept) -> None:
        """Keep what fits; a linearisation goes before a program does."""
        device, name = work.device, (work.kind, work.index)
        self.store.free(name)
        if kept.maps is not None and not self.store.room(kept.maps.bytes + kept.bytes, device):
            kept.maps = None
        size = kept.bytes + (kept.maps.bytes if kept.maps is not None else 0)
        if (kept.maps or kept.program) and self.store.room(size, device):
            self.store.put(name, kept, size, work.version)

    # One vector ------------------------------------------------------------------------------------------------------
    def _single(
        self, work: Workload, choice: Choice, kept: Kept, v: torch.Tensor, w: torch.Tensor, new: bool, ahead: Ahead
    ) -> None:
        if not choice.program:
            kept.program = kept.several = None  # programs have been given up since
        if kept.program is not None and (choice.proven or not work.leads):
            kept.program.add(v, w, new)
            return
        if work.leads:
            product = self._by_way(work, choice, kept, v, ahead.coming)
            if kept.program is None and self._pays(work, choice, ahead):
                self._record_first(work, choice, kept, v)
            if kept.program is not None:
                self._prove(work, choice, kept, kept.program, v, product, ahead.coming)
        else:
            recorded = self._record(work, choice, kept, v) if self._pays(work, choice, ahead) else None
            product = recorded if recorded is not None else self._by_way(work, choice, kept, v)
        pieces = list(product)
        del product
        trace.add_pieces(w, pieces, new)

    def _by_way(self, work: Workload, choice: Choice, kept: Kept, v: torch.Tensor, coming: int = 0) -> trace.Pieces:
        """The product in a way, which is tested and timed while it is new."""
        while True:
            if work.leads:
                self._turn(choice, v.device, coming)
            way = choice.way
            young = work.leads and choice.young
            begin = _now(v) if young else 0.0
            try:
                if kept.way != way or kept.maps is None:
                    kept.way, kept.maps = way, None  # the other's graph goes first
                    kept.maps = work.linearize(way)
                product = kept.maps.product(v)
                if young:
                    seconds = _now(v) - begin
                    choice.note(way, seconds, kept.maps.check(v, product) if self.check else 0.0)
                    choice.timings[way].bytes = kept.maps.bytes
                return product
            except FAILURES as failure:
                if not work.leads:
                    raise
                kept.maps = None
                self._refuse(choice, failure)

    def _refuse(self, choice: Choice, failure: Exception) -> None:
        """Go on in another way, or end with a sentence if there is none."""
        way = choice.ways.pop(0)
        choice.problems[way] = failure
        choice.failures.append(f"{way}: {_said(failure)}")
        choice.timings.pop(way, None)
        if not choice.ways:
            named = self.explain(choice.problems) if self.explain is not None else ""
            choice.ways = list(choice.problems)  # whoever asks again is told again
            raise ValueError(
                f"no engine multiplies this matrix ({named or '; '.join(choice.failures)}); give what fails a derivative, or "
                "replace it by torch operations."
            ) from next(iter(choice.problems.values()))

    def _turn(self, choice: Choice, device: torch.device, coming: int) -> None:
        """Give the way that has not multiplied yet a turn, if that may pay; then go on in the faster one."""
        if len(choice.ways) < 2 or not self.turns or choice.program or choice.way not in choice.timings:
            return
        now, other = (choice.timings.get(way) for way in choice.ways)
        if now is not None and other is None:
            graphs = linearize.COPIES[choice.ways[1]] / linearize.COPIES[choice.way]
            if coming > TURN and self.store.room(int(graphs * now.bytes), device):
                choice.ways.reverse()
        elif now is not None and other is not None and now.later < math.inf and BETTER * now.each > other.each:
            choice.ways.reverse()

    # Programs --------------------------------------------------------------------------------------------------------
    def _pays(self, work: Workload, choice: Choice, ahead: Ahead) -> bool:
        """Whether to record this product: that is worth it for the products to come, and what recording holds fits."""
        if choice.asked in ALONE or choice.settled or work.index in choice.without or not (work.leads or choice.proven):
            return False
        way, program = choice.timings[choice.way], choice.timings.get(choice.program)
        if program is None:
            first = (RECORDING + (self.groups - 1) * LATER) / self.groups  # of a batch, on average
            cost, gain, size = first * way.first, SAVED * way.each, work.graph
        else:
            cost, gain = program.first, way.each - program.later
            size = int(max(program.bytes, program.held) * work.samples / choice.samples)
        if self.store.room(size, work.device):
            return choice.asked != "auto" or ahead.coming * gain > cost
        if program is None and size > self.store.whole(work.device):
            choice.give_up(
                f"recording would hold about {size / 2**20:.3g} MiB, more than the {self.store.whole(work.device) / 2**20:.3g} "
                "MiB of memory="
            )
        return False

    def _recorded(
        self, work: Workload, way: str, v: torch.Tensor, compiled: bool
    ) -> tuple[trace.Program, trace.Pieces, Timing, float]:
        """(a program of this way's product with v, that product, what recording took, how far products may be off)."""
        begin, own, maps = _now(v), work.own(), work.linearize(way)
        program = self.build(maps.product, v, own)
        if compiled:
            self.compile(program)
        product, program.seen = program.seen, None
        timing = Timing(_now(v) - begin, bytes=program.bytes(own), held=program.held)
        return program, product, timing, max(maps.allowed, arrays.discrepancy(v.dtype))  # type: ignore[return-value]

    def _record_first(self, work: Workload, choice: Choice, kept: Kept, v: torch.Tensor) -> None:
        """The first batch's program, which is still to be held to products."""
        name = choice.program or ("compiled" if choice.asked == "compiled" else "replay")
        try:
            program, _, timing, kept.allowed = self._recorded(work, choice.way, v, name == "compiled")
        except (*FAILURES, OSError, ImportError) as failure:  # no compiler on this machine, say
            choice.give_up(_said(failure))
            return
        kept.program, kept.bytes = program, timing.bytes
        choice.program, choice.timings[name] = name, timing

    def _prove(
        self, work: Workload, choice: Choice, kept: Kept, program: trace.Program, v: torch.Tensor, product: trace.Pieces,
        coming: int,
    ) -> None:  # fmt: skip
        """Hold the first batch's program to a product of its way; decide once there have been enough of them."""
        name = choice.program
        try:
            seconds, error = self._held(program, v, product, kept.allowed, choice.calls.get(name, 0))
        except FAILURES as failure:
            self._fall_back(choice, kept, failure)
            return
        choice.note(name, seconds, error)
        if choice.proven:
            kept.maps = None  # its graph is as large
        if choice.calls[name] == CALLS:
            if choice.asked == "auto":
                self._decide(choice, kept, program, v, coming)
            if kept.program is program and choice.program == "replay" and not self.turns and len(choice.ways) > 1:
                self._challenge(work, choice, kept, v, product, coming)

    def _held(
        self, program: trace.Program, v: torch.Tensor, product: trace.Pieces, allowed: float, call: int
    ) -> tuple[float, float]:
        """(seconds, relative error) of a program beside a product, in turn in both forms in which it will be used."""
        begin = _now(v)
        w = _into(program, v, product, new=call != 1)
        seconds = _now(v) - begin
        return seconds, _hold(w, product, allowed, call)

    def _decide(self, choice: Choice, kept: Kept, program: trace.Program, v: torch.Tensor, coming: int) -> None:
        """A program that holds multiplies from now on, unless what there was is as fast."""
        before = "replay" if choice.program == "compiled" else ""
        now = choice.timings[choice.program]
        if now.later > BETTER * choice.timings[before or choice.way].each:
            choice.program, choice.settled = before, not before
            kept.program, kept.bytes = None, 0
            self._shared.clear()
        elif choice.program == "replay" and coming * self.groups * now.later > COMPILE:
            begin = _now(v)
            try:
                self.compile(program)
            except (*FAILURES, OSError, ImportError) as failure:  # no compiler on this machine, say
                choice.failures.append(f"compiled: {_said(failure)}")
                kept.program = None
                return
            choice.program = "compiled"
            choice.timings["compiled"] = Timing(_now(v) - begin, bytes=kept.bytes, held=now.held)

    def _challenge(
        self, work: Workload, choice: Choice, kept: Kept, v: torch.Tensor, product: trace.Pieces, coming: int
    ) -> None:
        """Try the other way's program, where it may be the shorter one, before other batches are recorded."""
        way, other = choice.ways
        now, before = choice.timings["replay"], choice.timings[way]
        fits = self.store.room(now.held + now.bytes, work.device)
        if not fits or coming * RIVAL * now.later < RECORDING * before.first:
            return
        try:
            rival, _, timing, allowed = self._recorded(work, other, v, False)
            for call in range(CALLS):
                timing.later = min(timing.later, self._held(rival, v, product, allowed, call)[0])
        except FAILURES as failure:
            choice.failures.append(f"replay of {other}: {_said(failure)}")
            return
        if timing.later < BETTER * now.later:
            choice.ways.reverse()
            choice.timings[other] = Timing(before.first, before.later)  # as far as is known
            choice.timings["replay"], kept.program, kept.several, kept.bytes = timing, rival, None, timing.bytes

    def _fall_back(self, choice: Choice, kept: Kept, failure: Exception) -> None:
        """Give up compiled programs for plain ones that have been seen to hold, else programs."""
        if choice.program == "compiled" and choice.calls.get("replay", 0) >= CALLS:
            choice.failures.append(f"compiled: {_said(failure)}")
            choice.timings.pop("compiled", None)
            choice.program = "replay"
        else:
            choice.give_up(_said(failure))
        kept.program, kept.several, kept.bytes = None, None, 0
        self._shared.clear()

    def _record(self, work: Workload, choice: Choice, kept: Kept, v: torch.Tensor) -> trace.Pieces | None:
        """The product of a later batch, recorded while it is made; its program is held to it. None if it cannot be."""
        try:
            program, product, timing, allowed = self._recorded(work, choice.way, v, choice.program == "compiled")
            for call in range(1 if program.pure else CALLS):
                _hold(_into(program, v, product), product, allowed, call)
        except FAILURES as failure:  # only the first batch's has been tried
            choice.without.add(work.index)
            choice.failures.append(f"{choice.program} of a later batch: {_said(failure)}")
            return None
        kept.program, kept.bytes, kept.maps = program, timing.bytes, None
        return product

    def build(self, linear: trace.Linear, v: torch.Tensor, own: set[int]) -> trace.Program:
        """The program of a linear map, recorded at v, with its adders, which programs of one key share."""
        program = trace.record(linear, v, self.store.left(v.device), own)
        self._summing(program)
        return program

    def _summing(self, program: trace.Program) -> trace.Program:
        if program.pure:
            key = ("sum", program.key())
            if key not in self._shared:
                self._shared[key] = program.adder(), program.adder(new=True)
            program.sum, program.put = self._shared[key]
        return program

    def compile(self, program: trace.Program) -> None:
        """Let the program run through `torch.compile`, once for all of one key."""
        key = program.key()
        if key not in self._shared:
            self._shared[key] = torch.compile(program.module, dynamic=False, options={"layout_optimization": False})
        program.run, program.sum, program.put = self._shared[key], None, None

    # Blocks ----------------------------------------------------------------------------------------------------------
    def _width(self, work: Workload, choice: Choice, kept: Kept, V: torch.Tensor, coming: int) -> int:
        """How many of the vectors to multiply at a time: 1, or what the block's program takes if that is worth it."""
        program = kept.program
        if program is None or not choice.program or not choice.proven or len(V) < 2:
            choice.block = choice.block or ("one by one" if len(V) > 1 else "")
            return 1
        if kept.several is None and self._shared.get(("width", work.kind)) != 1:
            self._widen(work, choice, kept, program, V, coming)
        return kept.width if kept.several is not None and 2 * len(V) >= kept.width else 1

    def _together(self, kept: Kept, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        """A block of the width of its program, or less, which is filled with zeros."""
        missing = kept.width - len(V)
        if not missing:
            kept.several.add(V, W, new)  # type: ignore[union-attr]
            return
        pieces = kept.several(torch.cat([V, V.new_zeros(missing, V.shape[1])]))  # type: ignore[misc]
        trace.add_pieces(W, tuple(piece[: len(V)] for piece in pieces), new)

    def _widen(
        self, work: Workload, choice: Choice, kept: Kept, program: trace.Program, V: torch.Tensor, coming: int
    ) -> None:
        """Give the batch a program for several vectors, if the first batch's was faster than one by one."""
        known = self._shared.get(("width", work.kind))
        width = known or min(len(V), BLOCK, self._fitting(program, V[0]))
        if width < 2 or (known is None and (coming * self.groups < SERVE * width or not work.leads)):
            return
        key = ("block", width, program.key())
        begin = _now(V)
        try:
            if key not in self._shared:
                self._shared[key] = program.batched(width).module
            several = self._summing(trace.Program(self._shared[key], program.constants))
            if program.run is not program.module:
                self.compile(several)
            if known is None:
                faster, choice.block = self._compare(choice, program, several, V[:width], _now(V) - begin, coming)
                self._shared["width", work.kind] = known = width if faster else 1
        except FAILURES as failure:
            self._shared["width", work.kind] = known = 1
            choice.block = f"one by one: vmap: {_said(failure)}"
        if known > 1:
            kept.several, kept.width = several, known

    def _fitting(self, program: trace.Program, v: torch.Tensor) -> int:
        """Vectors whose own intermediate values, about as large as the constants for each, fit into what is left."""
        each = max(1, program.bytes(set()) + 4 * v.numel() * v.element_size())
        return max(1, int(self.store.left(v.device) / each))

    def _compare(
        self, choice: Choice, program: trace.Program, several: trace.Program, V: torch.Tensor, built: float, coming: int
    ) -> tuple[bool, str]:
        """Hold a block's program to single products and time both: (whether it is faster for the products to come, why)."""
        width, m = len(V), sum(math.prod(shape) for shape in program.shapes)
        W, alone = arrays.empty((width, m), V), arrays.empty((width, m), V)
        several.add(V, W, new=True)
        begin = _now(V)
        for v, w in zip(V, alone, strict=True):
            program.add(v, w, new=True)
        single = (_now(V) - begin) / width
        _hold(W, (alone,), max(choice.errors[choice.program], arrays.discrepancy(V.dtype)), 0)
        begin = _now(V)
        several.add(V, W, new=True)
        block = (_now(V) - begin) / width
        faster = built / self.groups + coming * block < coming * single
        why = f"{block:.2e} s each by vmap of {width}, {single:.2e} s alone, on what is multiplied first"
        return faster, f"{'vmap' if faster else 'one by one'}: {why}"


def _into(program: trace.Program, v: torch.Tensor, like: trace.Pieces, new: bool = True) -> torch.Tensor:
    """The program's product in a vector of its own, written or added to zeros."""
    w = arrays.empty((sum(piece.numel() for piece in like),), v)
    if not new:
        w.zero_()
    program.add(v, w, new)
    return w


def _hold(w: torch.Tensor, expected: trace.Pieces, allowed: float, call: int) -> float:
    """The relative distance of a program's product from what it must be, if it is rounding; `linearize.Wrong` if not."""
    w, start, scale, difference = w.reshape(-1), 0, 0.0, 0.0
    for piece in expected:
        part, piece = w[start : start + piece.numel()], piece.reshape(-1)
        scale = math.hypot(scale, linearize.norm((piece,)))
        difference = math.hypot(difference, linearize.norm((part - piece,)))
        start += piece.numel()
    error = difference / scale if scale > 0 else difference
    if not error <= allowed:
        raise linearize.Wrong(f"differs from a fresh product by {error:.1e} on call {call + 1}")
    return error


def _said(failure: Exception) -> str:
    """Its first line, as a record keeps it."""
    return re.sub(r"\s+", " ", first_line(failure))[:200]


def _now(v: torch.Tensor) -> float:
    """The clock, after the device has done what it was asked."""
    if v.device.type == "cuda":
        torch.cuda.synchronize(v.device)
    return time.perf_counter()
