"""Which engine multiplies: chosen by the products that are made anyway, and held to them.

The first product of a kind is taken in a way (`linearize.WAYS`) that must pass its own tests; it is the answer, not a
rehearsal. Where recording pays for itself and fits into memory, a later one is recorded as a program while it is made, and the
program is held to it; where it cannot be, the other way takes a turn, and the faster of both goes on. The first batch's program
is held on CALLS products in all before it is trusted: of a symmetric matrix on one with signs r too, by <r, A v> = <v, A r>, and
on A v again; of another, and where operations write in place, on later products, which the way makes too. A rival takes the
program's place if it holds on the last of these products as often, and is faster: the other way's program, a compiled one, a
CUDA graph.

Legend: n columns and m rows of a batch's linear map, b vectors of a block; blocks are (b, n) and (b, m), one vector a row.
A product is given in pieces that follow one another, such as the gradients of the parameters, so that none is copied.
What an engine is, and one that does nothing of all this, is `engine/plain.py`.
"""

from __future__ import annotations

import copy
import functools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from spectral import arrays, probes
from spectral.engine import capture, linearize, trace
from spectral.engine.linearize import CALLS, DIFFERENCE, ROWS, WAYS
from spectral.engine.plain import Maps, Workload
from spectral.engine.store import Store
from spectral.failures import first_line

COMPILE = 600.0  # auto compiles only a run that is predicted to take longer [s]: compiling takes up to a minute
# Guesses before a candidate is measured, in first products and in present ones: the first batch's recording with its tests took 1
# to 1.6 of the former beyond the product that it makes, another's with it 1 to 2, and they saved .05 to .5 of the latter on five
# models. Whoever makes ten products in a row shall not pay for it. The other way saves as much, and takes two products more at
# first where vectors weigh more than a model's arithmetic: it waits for TURN products, made or announced.
RECORDING, LATER, SAVED = 2.25, 1.5, 0.2
OF_HESSIAN = 4.0  # the same of a Hessian, whose program saves half as much; and what the other way's takes
# The first product counts as so many present ones at most: that of a process loads code and touches new memory (5 to 10 of them),
# and recording does neither again.
COLD = 1.5
TURN = 10.0
RIVAL = 0.15  # what the other way's program may save of a Hessian's: 0 to .2 on five models
BETTER = 0.95  # a candidate must take less than this part of the time: near ties go the same way in every run
SERVE = 10  # products a column that a block's program must serve: trying it takes about three, and it saves some tenths of one
SIGNS = 2  # the seed of a program's own test: `linearize.Adjoint` and the Hessian's tests draw others
BLOCK = 8  # vectors that a program takes at a time, at most
ALONE = {*WAYS, DIFFERENCE}  # engines that are a way, of which nothing is recorded
# What torch raises where it cannot.
FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError)
UNBUILT = (*FAILURES, OSError, ImportError)  # and where there is no compiler on this machine, say


@dataclass
class Trial:
    """An engine on the first batch: seconds of its first product, recording included, and of the fastest later one; its tests."""

    first: float
    later: float = math.inf
    bytes: int = 0  # that keeping it takes
    held: int = 0  # that recording it held meanwhile
    allowed: float = 0.0  # how far a program's products may be off by rounding
    calls: int = 0  # on which it has been tested
    error: float = 0.0  # the largest: of a way by its own tests, of a program from its way

    @property
    def each(self) -> float:
        """Of a product to come, as far as is known."""
        return min(self.first, self.later)

    def add(self, seconds: float, error: float) -> None:
        """One more product."""
        self.later, self.calls, self.error = min(self.later, seconds), self.calls + 1, max(self.error, error)

    def hold(
        self, program: trace.Program, v: torch.Tensor, product: trace.Pieces, room: torch.Tensor | None = None
    ) -> None:
        """One more product of a program beside one of its way, in turn in both forms in which it will be used."""
        w = arrays.empty((sum(piece.numel() for piece in product),), v) if room is None else room
        seconds = _run(program, v, w, new=self.calls != 1)
        self.add(seconds, _hold(w, product, self.allowed, self.calls))


@dataclass
class Kept:
    """What is kept of one batch: its linearisation in a way, its program, and one for several vectors at a time."""

    way: str = ""
    maps: Maps | None = None
    program: trace.Program | None = None
    several: trace.Program | None = None
    width: int = 1
    bytes: int = 0  # of the program


@dataclass
class Choice:
    """What is known of one kind of product: trials of the engines that hold, failures of the others, what multiplies now."""

    asked: str
    ways: list[str]  # that have not failed, the present one first
    timings: dict[str, Trial] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    problems: dict[str, Exception] = field(default_factory=dict)  # by way
    count: int = 0  # vectors so far
    samples: int = 1  # of the first batch
    program: str = ""  # "replay" or "compiled", while programs multiply or are tested
    settled: bool = False  # no program is tried any more
    without: set[int] = field(default_factory=set)  # batches that cannot be recorded
    block: str = ""  # how blocks are multiplied, once one has been
    captured: bool = False  # whether programs are launched as CUDA graphs

    @property
    def way(self) -> str:
        return self.ways[0]

    def tested(self, name: str) -> bool:
        """Whether an engine has been seen to hold, on as many calls as it takes."""
        return name in self.timings and self.timings[name].calls >= CALLS

    @property
    def proven(self) -> bool:
        """Whether programs have."""
        return self.tested(self.program)

    @property
    def young(self) -> bool:
        """Whether the present way is still tested; one whose program was held to another's products need not be."""
        return not (self.proven or self.tested(self.way))

    @property
    def engine(self) -> str:
        """What multiplies now."""
        return self.program if self.proven else self.way

    def describe(self) -> dict[str, Any]:
        """Plain JSON: the engine, why, and what each one takes on the first batch."""
        why = "fastest of those that hold, by the products that were made"
        return {
            "engine": self.engine,
            "reason": "; ".join(["asked for" if self.asked != "auto" else why, *self.failures]),
            **({"block": self.block} if self.block else {}),
            **({"launch": "CUDA graph"} if self.captured and self.engine == "replay" else {}),
            "adjoint_error": self.timings[self.way].error if self.way in self.timings else 0.0,
            "seconds_first_batch": {name: round(t.each, 6) for name, t in self.timings.items()},
        }


@dataclass
class AutoEngine:
    """The `Engine` of every operator: for each kind of product what was chosen, and what is kept of each batch."""

    asked: str = "auto"
    ways: tuple[str, ...] = tuple(WAYS)
    check: bool = True  # hold the ways to their tests
    explain: Callable[[dict[str, Exception]], str] | None = None  # names what has no derivative
    turns: bool = True  # of a Jacobian: the second way is worth a try where the first holds, and rows where none does
    choices: dict[str, Choice] = field(default_factory=dict)
    store: Store = field(default_factory=Store)
    shared: dict[Any, Any] = field(default_factory=dict)  # adders, block and compiled programs by their key
    recording: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoEngine:
        """One that has multiplied nothing: graphs and programs are of the model that they were made of."""
        explain = copy.deepcopy(self.explain, memo)
        return AutoEngine(self.asked, self.ways, self.check, explain, self.turns, store=Store(self.store.budget))

    def multiplier(self, work: Workload) -> Tuned:
        if work.kind not in self.choices:
            ways = [self.asked] if self.asked in ALONE else list(self.ways)
            self.choices[work.kind] = Choice(self.asked, ways)
        return Tuned(self, work)

    def tests(self, kind: str | None = None) -> bool:
        """Without a kind those of a way that may take its turn soon are counted in."""
        if kind is not None:
            return self.check and kind in self.choices and self.choices[kind].young
        return self.check and any(
            choice.young or (not choice.proven and self._waits(choice) and choice.count <= TURN)
            for choice in self.choices.values()
        )

    def _waits(self, choice: Choice) -> bool:
        """Whether the second way has not multiplied yet and might."""
        return len(choice.ways) > 1 and self.turns and not choice.program and choice.ways[1] not in choice.timings

    @property
    def settled(self) -> bool:
        tried = bool(self.choices) and all(
            choice.proven or not (choice.young or choice.program) for choice in self.choices.values()
        )
        return self.asked in ALONE or tried

    def describe(self, kind: str) -> dict[str, Any]:
        chosen = self.choices[kind].describe() if kind in self.choices else {}
        others = {other: choice.engine for other, choice in self.choices.items() if other != kind}
        return {"engine": self.asked, **chosen, **({"other_engines": others} if others else {})}

    # Programs, which those of one key share -----------------------------------------------------------------------------
    def build(self, linear: trace.Linear, v: torch.Tensor, own: set[int]) -> trace.Program:
        """The program of a linear map, recorded at v, with its adders."""
        return self.summing(trace.record(linear, v, self.store.left(v.device), own))

    def summing(self, program: trace.Program) -> trace.Program:
        """With its adders."""
        if program.pure:
            key = ("sum", program.key())
            if key not in self.shared:
                self.shared[key] = program.adder(), program.adder(new=True)
            program.sum, program.put = self.shared[key]
        return program

    def compile(self, program: trace.Program) -> None:
        """Let it run through `torch.compile`."""
        key = program.key()
        if key not in self.shared:
            self.shared[key] = torch.compile(program.module, dynamic=False, options={"layout_optimization": False})
        program.run, program.sum, program.put = self.shared[key], None, None


class Tuned:
    """One batch in one sweep: its workload, what is known of its kind of product, and what is kept of it."""

    def __init__(self, engine: AutoEngine, work: Workload) -> None:
        self.engine, self.work, self.choice = engine, work, engine.choices[work.kind]
        self.kept: Kept = engine.store.get(work.key, work.version) or Kept()
        self.coming = 0  # products, those that were announced and are still to come, or as many as were made
        if work.leads:
            self.choice.samples = work.samples

    def add(self, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        at = 0
        while at < len(V):
            made = self.choice.count
            self.coming = self.work.expected - made if self.work.expected > made else made + 1
            width = self._width(V[at:])
            part, sums = V[at : at + width], W[at : at + width]
            if width > 1:
                self._together(part, sums, new)
            else:
                self._single(part[0], sums[0], new)
            self.choice.count += len(part) if self.work.leads else 0
            at += width
        # keep what fits; a linearisation goes before a program does
        kept, store, device = self.kept, self.engine.store, self.work.device
        store.free(self.work.key)
        if kept.maps is not None and not store.room(kept.maps.bytes + kept.bytes, device):
            kept.maps = None
        size = kept.bytes + (kept.maps.bytes if kept.maps is not None else 0)
        if (kept.maps or kept.program) and store.room(size, device):
            store.put(self.work.key, kept, size, self.work.version)

    def _room(self, size: float) -> bool:
        return self.engine.store.room(int(size), self.work.device)

    # One vector ------------------------------------------------------------------------------------------------------
    def _single(self, v: torch.Tensor, w: torch.Tensor, new: bool) -> None:
        choice, kept = self.choice, self.kept
        if not choice.program:
            kept.program = kept.several = None  # programs have been given up since
        if kept.program is not None and choice.proven:
            kept.program.add(v, w, new)
            return
        product = self._record(v, w if new else None) if kept.program is None and self._pays() else None
        if product is None:
            product = self._by_way(v, w if new else None)
            if kept.program is not None:
                here = w.untyped_storage().data_ptr()  # a part of the product may lie in w, the first one or another
                apart = new and all(piece.untyped_storage().data_ptr() != here for piece in product)
                self._prove(v, product, w if apart else None)
            elif choice.asked != "auto" and not choice.proven and self._pays():  # at once
                self._record(v, None)
        pieces = list(product)
        del product
        trace.add_pieces(w, pieces, new)

    def _by_way(self, v: torch.Tensor, room: torch.Tensor | None = None) -> trace.Pieces:
        """The product in a way, which is tested and timed while it is new; perhaps in `room`, but for its first, which waits."""
        choice, kept, leads = self.choice, self.kept, self.work.leads
        while True:
            if leads:
                self._turn()
            way, young = choice.way, leads and choice.young
            begin = _now(v) if young else 0.0
            made = False
            try:
                if kept.way != way or kept.maps is None:
                    made, kept.way, kept.maps = True, way, None  # the other's graph goes first
                    kept.maps = self.work.linearize(way)
                heavy = room is not None and room.nbytes > arrays.HEAVY and not (young and way not in choice.timings)
                product = kept.maps.product_in(v, room if heavy else None)
                if young and len(choice.ways) > 1 and not all(arrays.all_finite(piece) for piece in product):
                    raise linearize.Wrong("the product holds NaN or infinity")
                if young:
                    seconds = _now(v) - begin
                    error = kept.maps.check(v, product) if self.engine.check else 0.0
                    trial = choice.timings.setdefault(way, Trial(seconds))
                    trial.add(seconds if trial.calls else math.inf, error)
                    trial.bytes = kept.maps.bytes
                return product
            except FAILURES as failure:
                kept.maps = None
                if not made and not isinstance(failure, linearize.Wrong):
                    continue  # its graph is stale: weights were written to and put back, so that the model is as it was
                if not leads:
                    raise
                self._refuse(failure)

    def _refuse(self, failure: Exception) -> None:
        """Go on in another way, or end with a sentence if there is none."""
        choice, explain = self.choice, self.engine.explain
        way = choice.ways.pop(0)
        choice.problems[way] = failure
        choice.failures.append(f"{way}: {_said(failure)}")
        choice.timings.pop(way, None)
        if choice.ways:
            return
        last = way == ROWS or choice.asked in ALONE or isinstance(failure, torch.OutOfMemoryError)
        if self.engine.turns and not last:
            choice.ways, choice.settled = [ROWS], True
        else:
            named = explain(choice.problems) if explain is not None else ""
            choice.ways = [tried for tried in choice.problems if tried != ROWS]  # whoever asks again is told again
            missing = not any(isinstance(problem, linearize.Wrong) for problem in choice.problems.values())
            differs = missing and not self.engine.turns  # a Hessian, whose gradient is sound
            others = ", or take differences of gradients (engine='finite-difference')" if differs else ""
            raise ValueError(
                f"no engine multiplies this matrix ({named or '; '.join(choice.failures)}); give what fails a derivative, or "
                f"replace it by torch operations{others}."
            ) from next(iter(choice.problems.values()))

    def _turn(self) -> None:
        """Give the way that has not multiplied yet a turn, if that may pay and no program can; then go on in the faster one."""
        choice = self.choice
        if len(choice.ways) < 2 or not self.engine.turns or choice.program or choice.way not in choice.timings:
            return
        now, other = choice.timings[choice.way], choice.timings.get(choice.ways[1])
        if other is None:
            graphs = linearize.COPIES[choice.ways[1]] / linearize.COPIES[choice.way]
            alone = choice.settled or not self._room(self.work.graph)
            if alone and self.coming > TURN and self._room(graphs * now.bytes):
                choice.ways.reverse()
        elif now.later < math.inf and BETTER * now.each > other.each:
            choice.ways.reverse()

    # Programs --------------------------------------------------------------------------------------------------------
    @property
    def _by_signs(self) -> bool:
        """Whether a recorded product is held to signs alone; a Hessian's, which may be asymmetric, to the one before too."""
        return self.work.symmetric and self.engine.turns

    def _pays(self) -> bool:
        """Whether to record this product: that is worth it for the products to come, and what recording holds fits."""
        work, choice = self.work, self.choice
        ready = choice.proven or (work.leads and choice.way in choice.timings)
        if choice.asked in ALONE or choice.settled or work.index in choice.without or not ready:
            return False
        way, program = choice.timings[choice.way], choice.timings.get(choice.program)
        if program is None:
            least = RECORDING if self.engine.turns else OF_HESSIAN
            first = (least + (work.groups - 1) * LATER) / work.groups  # of a batch, on average
            cost, gain, size = first * min(way.first, COLD * way.each), SAVED * way.each, work.graph
        else:
            cost, gain = program.first, way.each - program.later
            size = int(max(program.bytes, program.held) * work.samples / choice.samples)
        if self._room(size):
            return choice.asked != "auto" or self.coming * gain > cost
        if program is None and size > (whole := self.engine.store.whole(work.device)):
            self._give_up(
                f"recording would hold about {size / 2**20:.3g} MiB, more than the {whole / 2**20:.3g} MiB of memory="
            )
        return False

    def _give_up(self, why: str = "") -> None:
        """No programs any more; `why` they fail, "" where they are only slower."""
        choice, kept = self.choice, self.kept
        if why:
            choice.failures.append(f"replay: {why}")
            choice.timings.pop("replay", None)
        choice.program, choice.settled, kept.program, kept.bytes = "", True, None, 0

    def _recorded(self, way: str, v: torch.Tensor) -> tuple[trace.Program, trace.Pieces, Trial]:
        """(a program of this way's product with v, as programs are run by now, that product, what recording took)."""
        begin, own, maps = _now(v), self.work.own(), self.work.linearize(way)
        taken = 0.0

        @functools.wraps(maps.product)
        def made(x: torch.Tensor) -> trace.Pieces:
            nonlocal taken
            start = _now(x)
            pieces = maps.product(x)
            taken = _now(x) - start
            return pieces

        program = self.engine.build(made, v, own)
        self.engine.recording = max(self.engine.recording, self.engine.store.used + program.held)
        product, program.seen = program.seen, None
        if self.work.leads and way == self.choice.way:
            own_way = self.choice.timings[way]
            if self.choice.young and not self._by_signs:
                own_way.add(taken, maps.check(v, product) if self.engine.check else 0.0)  # type: ignore[arg-type]
            own_way.later = min(own_way.later, taken)
        if self.choice.program == "compiled":
            self.engine.compile(program)
        if self.choice.captured:
            program.capture(v)
        trial = Trial(_now(v) - begin, bytes=program.bytes(own), held=program.held)
        trial.allowed = max(maps.allowed, arrays.discrepancy(v.dtype))
        return program, product, trial  # type: ignore[return-value]

    def _record(self, v: torch.Tensor, room: torch.Tensor | None) -> trace.Pieces | None:
        """The product, recorded while it is made; its program is held to it, in `room`. None if it cannot be."""
        choice, kept, proven = self.choice, self.kept, self.choice.proven
        kept.maps = None  # two graphs are as large
        self.engine.store.free(self.work.key)
        if self._by_signs and not proven:
            self.work.forget()
        try:
            program, product, trial = self._recorded(choice.way, v)
            if not proven:  # the first batch's
                trial = choice.timings.get("replay", trial)
            for _ in range(CALLS if proven and not program.pure else 1):
                trial.hold(program, v, product, room)
            if not proven:  # now, so that who interrupts a first call leaves nothing behind
                choice.program, choice.timings["replay"] = "replay", trial
            if not proven and program.pure and self.work.symmetric:
                pieces: list[torch.Tensor] = list(product)
                del product
                product = self._signed(program, v, pieces, room)
        except UNBUILT as failure:
            if not proven:
                self._give_up(_said(failure))
            else:  # only the first batch's has been tried
                choice.without.add(self.work.index)
                choice.failures.append(f"{choice.program} of a later batch: {_said(failure)}")
            return None
        kept.program, kept.bytes = program, trial.bytes
        if not proven and choice.proven:
            self._decide(v, product)
        return product

    def _signed(
        self, program: trace.Program, v: torch.Tensor, product: list[torch.Tensor], room: torch.Tensor | None
    ) -> trace.Pieces:
        """A v by the first batch's program in `room`, which holds to `product`, A v, in two calls more; that is emptied first."""
        trial, r = self.choice.timings["replay"], probes.generic_signs(SIGNS, len(v), v.device)
        m, due = sum(piece.numel() for piece in product), linearize.inner(r, product)
        product.clear()
        w = arrays.empty((m,), v) if room is None else room

        def held(x: torch.Tensor, y: linearize.Vector, new: bool) -> None:
            """One more call, A x in w; <y, A x> is what it is of the product."""
            seconds = _run(program, x, w, new)
            error = linearize.disagreement(linearize.inner(y, (w,)), due, related=False)
            if not (error <= trial.allowed and arrays.all_finite(w)):
                raise linearize.Wrong(f"<r, A v> and <v, A r> of signs r differ by {error:.1e}")
            trial.add(seconds, error)

        held(r[:].to(v.dtype), v, False)  # added, as the products of later batches are
        held(v, r, True)
        return (w,)

    def _prove(self, v: torch.Tensor, product: trace.Pieces, room: torch.Tensor | None) -> None:
        """Hold the first batch's program to a product of its way, in `room`; decide after CALLS."""
        try:
            self.choice.timings["replay"].hold(self.kept.program, v, product, room)  # type: ignore[arg-type]
        except UNBUILT as failure:
            self._give_up(_said(failure))
            return
        if self.choice.proven:
            self._decide(v, product)

    def _decide(self, v: torch.Tensor, product: trace.Pieces) -> None:
        """A program that holds multiplies from now on, unless its way is as fast, or a rival that holds as well is faster."""
        choice, asked, now = self.choice, self.choice.asked, self.choice.timings["replay"]
        way, (_, *others) = choice.timings[choice.way], choice.ways
        if asked == "auto" and now.later > BETTER * way.each:
            self._give_up()
            return
        self.kept.maps = None  # its graph is as large
        # a Hessian's other way may have the shorter program
        worth = others and not self.engine.turns and self.coming * RIVAL * now.later >= OF_HESSIAN * way.first
        worth = worth and self._room(now.held + now.bytes)
        if worth and self._yields(f"replay of {others[0]}", lambda: self._recorded(others[0], v)[::2], v, product):
            choice.ways.reverse()
            choice.timings[choice.way] = Trial(way.first, way.later)  # as far as is known
        program: Any = self.kept.program
        launches = capture.LAUNCH * program.operations
        if asked == "compiled" or (asked == "auto" and self.coming * self.work.groups * now.later > COMPILE):
            if self._yields("compiled", lambda: self._again(program, "compiled", v), v, product):
                choice.program = "compiled"
        elif arrays.on_cuda(v.device) and launches >= capture.SHARE * choice.timings["replay"].later:
            choice.captured = self._yields("CUDA graph", lambda: self._again(program, "", v), v, product)

    def _again(self, program: trace.Program, engine: str, v: torch.Tensor) -> tuple[trace.Program, Trial]:
        """The program compiled, or as a CUDA graph."""
        program, begin, now = copy.copy(program), _now(v), self.choice.timings["replay"]
        if engine == "compiled":
            self.engine.compile(program)
            now = replace(now, first=_now(v) - begin)
        else:
            program.capture(v)
        return program, replace(now, later=math.inf, calls=0, bytes=program.bytes(self.work.own()))

    def _yields(
        self, rival: str, make: Callable[[], tuple[trace.Program, Trial]], v: torch.Tensor, product: trace.Pieces
    ) -> bool:
        """Whether the program gives its place to a rival, which is held to the product."""
        choice, kept = self.choice, self.kept
        try:
            program, trial = make()
            for _ in range(CALLS):
                trial.hold(program, v, product)
        except UNBUILT as failure:
            choice.failures.append(f"{rival}: {_said(failure)}")
            return False
        faster = trial.later < BETTER * choice.timings["replay"].later or choice.asked == rival
        if faster or rival == "compiled":
            choice.timings[rival if rival == "compiled" else "replay"] = trial
        if faster:
            kept.program, kept.bytes = program, trial.bytes
        return faster

    # Blocks ----------------------------------------------------------------------------------------------------------
    def _width(self, V: torch.Tensor) -> int:
        """How many of the vectors to multiply at a time: 1, or what the block's program takes if that is worth it."""
        choice, kept = self.choice, self.kept
        if kept.program is None or not choice.proven or len(V) < 2:
            choice.block = choice.block or ("one by one" if len(V) > 1 else "")
            return 1
        if kept.several is None and self.engine.shared.get(("width", self.work.kind)) != 1:
            self._widen(kept.program, V)
        return kept.width if kept.several is not None and 2 * len(V) >= kept.width else 1

    def _together(self, V: torch.Tensor, W: torch.Tensor, new: bool) -> None:
        """A block of the width of its program, or less, which is filled with zeros."""
        several, missing = self.kept.several, self.kept.width - len(V)
        if not missing:
            several.add(V.contiguous(), W, new)  # type: ignore[union-attr]
            return
        pieces = several(torch.cat([V, V.new_zeros(missing, V.shape[1])]))  # type: ignore[misc]
        trace.add_pieces(W, tuple(piece[: len(V)] for piece in pieces), new)

    def _widen(self, program: trace.Program, V: torch.Tensor) -> None:
        """Give the batch a program for several vectors, if the first batch's was faster than one by one."""
        engine, work, kept = self.engine, self.work, self.kept
        known = engine.shared.get(("width", work.kind))
        # beside each vector lie intermediate values, about as large as the constants
        each = max(1, program.bytes(set()) + 4 * V[0].numel() * V.element_size())
        width = known or min(len(V), BLOCK, int(engine.store.left(V.device) / each))
        if width < 2 or (known is None and (self.coming * work.groups < SERVE * width or not work.leads)):
            return
        key = ("block", width, program.key())
        begin = _now(V)
        try:
            if key not in engine.shared:
                block = program.batched(width)
                engine.shared[key] = block.module, block.constants[len(program.constants) :]
            module, own = engine.shared[key]  # own: constants that vmap has made, of no batch
            several = engine.summing(trace.Program(module, [*program.constants, *own]))
            if program.run is not program.module:
                engine.compile(several)
            if known is None:
                faster = self._compare(program, several, V[:width].contiguous(), _now(V) - begin)
                engine.shared["width", work.kind] = known = width if faster else 1
        except FAILURES as failure:
            engine.shared["width", work.kind] = known = 1
            self.choice.block = f"one by one: vmap: {_said(failure)}"
        if known > 1:
            kept.several, kept.width = several, known

    def _compare(self, program: trace.Program, several: trace.Program, V: torch.Tensor, built: float) -> bool:
        """Hold a block's program to single products and time both: whether it is faster for the products to come."""
        choice, width, m = self.choice, len(V), sum(math.prod(shape) for shape in program.shapes)
        W, alone = arrays.empty((width, m), V), arrays.empty((m,), V)
        several.add(V, W, new=True)  # first, so that both are timed in memory that has been written
        alone.zero_()
        single = scale = 0.0
        for v, w in zip(V, W, strict=True):
            single += _run(program, v, alone, new=True) / width
            scale = math.hypot(scale, linearize.norm((alone,)))
            w -= alone
        _within(linearize.norm((W,)), scale, choice.timings[choice.program].allowed, 0)
        begin = _now(V)
        several.add(V, W, new=True)
        block = (_now(V) - begin) / width
        faster = built / self.work.groups + self.coming * block < self.coming * single
        why = f"{block:.2e} s each by vmap of {width}, {single:.2e} s alone, on what is multiplied first"
        choice.block = f"{'vmap' if faster else 'one by one'}: {why}"
        return faster


def _run(program: trace.Program, v: torch.Tensor, w: torch.Tensor, new: bool) -> float:
    """Seconds of a program's product, which is then w: written, or added to zeros."""
    begin = _now(v)
    if not new:
        w.zero_()
    program.add(v, w, new)
    return _now(v) - begin


def _hold(w: torch.Tensor, expected: trace.Pieces, allowed: float, call: int) -> float:
    """The relative distance of a program's product from what it must be, if it is rounding; `linearize.Wrong` if not."""
    difference = linearize.norm(own - due for own, due, _ in linearize.beside(w, expected))
    return _within(difference, linearize.norm(expected), allowed, call)


def _within(difference: float, scale: float, allowed: float, call: int) -> float:
    """The relative distance, if it is rounding; `linearize.Wrong` if not."""
    error = difference / scale if scale > 0 else difference
    if not error <= allowed:
        raise linearize.Wrong(f"differs from a fresh product by {error:.1e} on call {call + 1}")
    return error


def _said(failure: Exception) -> str:
    """Its first line, as a record keeps it."""
    return re.sub(r"\s+", " ", first_line(failure))[:200]


def _now(v: torch.Tensor) -> float:
    """The clock, after the device has done what it was asked."""
    present = torch.accelerator.current_accelerator() if v.device.type != "cpu" else None
    if present is not None and present.type == v.device.type:
        torch.accelerator.synchronize(v.device)
    return time.perf_counter()
