"""Where a run stands on disk: one file, written whole, that says all that the run goes on from.

A state is a mapping of numbers, texts, lists, arrays, tensors, None and other states. The run says what it is (`guard`); it is
saved when the last save is a while ago, when a part of the run has ended, and when SIGINT or SIGTERM ends it. A save takes at
most a twentieth of the time.

Of `GrowingRows` (a basis, what is deflated) what is new is appended to a file beside, so that a
save costs O(n). What a crash leaves behind the mark that the file itself holds is cut off.

What is read is held against the rule of the estimator; then `prove` repeats one product of the run. Of an operator that has
nothing but products no hash can say what it is, and no hash of any other sees all: a forward function that closes over a number,
a module's attribute. A product must come out as the record says, within its noise.

Of several ranks the first alone writes and reads, and tells the others; but of vectors that lie over ranks each writes and reads
its part, in one of two folders beside, in turn (`scattered`). What the file belongs to are the weights and the data of
all: a run goes on from it on another number of ranks, where these hold the same batches in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral import arrays, collectives, distributed, longvectors, persist, storage
from spectral.estimators import scattered
from spectral.estimators.budget import Spent, sharded, stoppable
from spectral.krylov.symmetry import KnownProduct
from spectral.operators.operator import Operator
from spectral.pieces import Piece
from spectral.schema import COUNT, FLOATS, NONNEGATIVE, Array, Either, Fields, Items, Plain, Row, Rule, Same, Text

FORMAT = "spectral.checkpoint/1"
SAVE_SECONDS = 2.0  # between saves, at least
SHARE = 20.0  # times what the last save took
ENDS = (KeyboardInterrupt, SystemExit, collectives.RankFailed)  # of a run that is saved

State = dict[str, Any]
MARK = Row(COUNT, Text(pattern="[0-9a-f]{64}", said="a SHA-256"))
SHAPE = Items(COUNT, most=4)
APART = Fields({"pieces": Text(), "shape": SHAPE, "axis": COUNT, "dtype": Text(*FLOATS)}, {"rows": COUNT})
FILE = Fields(
    {
        "format": Same(FORMAT),
        "identity": Text(),
        "state": Fields(others=Plain()),
        "arrays": Fields(
            others=Either(Fields({"shape": SHAPE}, {"dtype": Text(*FLOATS)}), Fields({"rows": MARK}), APART)
        ),
        "spent": Row(COUNT, NONNEGATIVE, NONNEGATIVE),
    }
)


class Checkpoint:
    """The file of a run and what the run has spent; without a path, the latter alone. `state`: what an earlier session left."""

    def __init__(
        self, path: Any, op: Operator, settings: dict[str, Any], rule: Rule, more: Any = None, **sizes: Any
    ) -> None:
        """`settings` are all that the result depends on beside the operator; `rule` with its `sizes` is what a state must be.

        `more` may be another in the next session (how many probes), but not on another rank.

        ValueError for a file that is damaged or of another operator, seed or setting.
        """
        self.op, self.rule = op, rule
        self.folder = ""  # beside the file: of the pieces that it names
        self.path = self._claimed(path, [settings, more])
        self.shards = (op.shards or op.T.shards) if self.path is not None and sharded(op) else None
        self.writes = self.path is not None and (op.ranks == 1 or distributed.rank() == 0)
        self.identity = "" if self.path is None else persist.fingerprint([self.matrix, storage.plain(settings)])
        self.state: State | None = None
        self.current: Callable[[], State] = dict  # where the run stands
        self.before = Spent()  # in earlier sessions
        self.beside: dict[str, persist.Rows] = {}  # files of rows
        self.unsaved: State | None = None  # the end of a part of the run that could not be saved
        if self.path is not None:
            found = None
            with distributed.together() if op.ranks > 1 else nullcontext():
                if self.writes and self.path.exists():
                    found = self._read()
                    if self.shards is None:
                        self._hold(found["state"], sizes)
            found = found if op.ranks == 1 else distributed.first(_whole(found), op.device)
            if found is not None:
                if self.shards is not None:
                    for full, about in found["apart"].items():
                        self.folder = about["pieces"]
                        self._put(found["state"], full, self._pieces(full, about))
                    self._hold(found["state"], sizes)
                self.state, self.before = found["state"], Spent(*found["spent"])
        self._begin()
        self.saved, self.took = time.monotonic(), 0.0

    def _claimed(self, path: Any, asked: list[Any]) -> Path | None:
        """Where the file is; of several ranks, that which the first was given. They must have been asked for the same run."""
        if self.op.ranks == 1:
            return None if path is None else persist.claim(path)

        matrix = self.matrix

        def told() -> tuple[str, str, str]:
            place = "" if path is None or distributed.rank() > 0 else str(persist.claim(path))
            return place, persist.fingerprint(storage.plain(asked)), matrix

        everyone = distributed.gather(told)
        for rank, (_, run, own) in enumerate(everyone):
            if run != everyone[0][1]:
                raise ValueError(
                    f"rank {rank} was asked for another run than rank 0 (other keywords); call the estimator alike on every rank."
                )
            if own != everyone[0][2]:
                raise ValueError(
                    f"rank {rank} has another matrix than rank 0 (another shift or factor, say); make the operator alike on "
                    "every rank."
                )
        return Path(everyone[0][0]) if everyone[0][0] else None

    def _read(self) -> State:
        """What an earlier session left."""
        packed, header = persist.load_own(self.path, FORMAT, self.identity)
        persist.check(self.path, header, FILE, "")
        state = self._unpacked(packed, header)
        products, epochs, seconds = header["spent"]
        spent = int(products), float(epochs), float(seconds)
        apart = {full: about for full, about in header["arrays"].items() if "pieces" in about}
        return {"state": state, "spent": spent, "apart": apart}

    def _hold(self, state: State, sizes: dict[str, Any]) -> None:
        """A state must be what the rule asks for; where ranks hold pieces of its vectors all of them look."""
        sizes = {"n": self.op.shape[0], "dtype": arrays.dtype_name(self.op.dtype), **sizes}
        persist.check(self.path, state, self.rule, "", **sizes)

    @cached_property
    def matrix(self) -> str:
        """The identity of the operator as the run begins."""
        return self.op.identity()

    def _begin(self) -> None:
        """Count from here."""
        self.begun = Spent.of(self.op).since(self.before)
        self.counted = self.before  # spent when the last step ended: a product that a signal cuts off is made again

    @property
    def spent(self) -> Spent:
        """Products, epochs and seconds so far, earlier sessions included."""
        return Spent.of(self.op).since(self.begun)

    def prove(self, known: KnownProduct, op: Operator | None = None, slack: float = 0.0) -> None:
        """Repeat a product that the state knows, before anything else is multiplied: by `op` where it is not the run's operator.

        ValueError if it differs by more than rounding or the operator's own `product_error`, relative to the product or to the
        scale of its rounding, and `slack`. The product is none of the run's.
        """
        op = self.op if op is None else op
        y = op @ known.vector
        off, size = known.differs(y), max(longvectors.norm(y), known.scale)
        if not off <= max(arrays.summation_error(op.dtype), op.product_error) * size + slack:
            raise ValueError(
                f"the checkpoint {self.path} is of another operator: a product of its run, made again, differs by "
                f"{off / size if size else math.inf:.2g} of its size; delete it, or name another file."
            )
        self._begin()

    # Saving ------------------------------------------------------------------------------------------------------------
    @contextmanager
    def guard(self, state: Callable[[], State], ready: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Inside, `state` says where the run stands between its steps; SIGINT and SIGTERM save it before they end the run.

        So does the failure of another rank; whatever ends the run on this one, the others are told.

        `ready`: whether it is whole in the midst of a step too; where it is not the last save stands.
        """
        self.current = state
        with stoppable(self.path is not None):
            try:
                yield
            except BaseException as failure:
                if self.op.ranks > 1:
                    collectives.leave(failure)
                # of pieces every rank would have to save its own, but each is elsewhere: the last save stands
                if self.writes and self.shards is None and isinstance(failure, ENDS) and ready():
                    self._save(state())
                raise

    def count(self) -> None:
        """What is spent by now belongs to the state."""
        self.counted = self.spent

    def stepped(self, end: bool = False) -> None:
        """A step was made; saved if the last save is long ago, or if this is the `end` of a part of the run."""
        self.count()
        if not self.writes and self.shards is None:
            return
        due = end or time.monotonic() - self.saved >= max(SAVE_SECONDS, SHARE * self.took)
        if not (due if end or self.shards is None else distributed.first(due)):
            return
        if end:
            self.unsaved = self.current()
        self._save(None if end else self.current())

    def _save(self, state: State | None) -> None:
        """Write the state; a full disk warns, and the last save stands.

        While the end of a part of the run is not on disk, the rows that its save goes on from are not written over.
        """
        begun = time.monotonic()
        with persist.forgiving(self.path):
            for one in (self.unsaved, state):
                if one is not None:
                    self._write(one)
                self.unsaved = None
        self.saved = time.monotonic()
        self.took = self.saved - begun

    def _write(self, state: State) -> None:
        """Rows first, then the file that says how many of them count; files of rows that it does not name are done with."""
        packed: dict[str, np.ndarray] = {}
        described: dict[str, Any] = {}
        growing: set[str] = set()
        laid: dict[str, tuple[torch.Tensor, int]] = {}  # pieces, with the axis that lies over ranks
        folder = self._beside("pieces-b" if self.folder.endswith("-a") else "pieces-a")

        def apart(full: str, one: torch.Tensor, axis: int, **rows: int) -> None:
            shape = [*one.shape[:axis], self.shards.n, *one.shape[axis + 1 :]]  # type: ignore[union-attr]
            dtype = arrays.dtype_name(one.dtype)
            described[full] = {"pieces": folder.name, "shape": shape, "axis": axis, "dtype": dtype, **rows}

        def plain(node: State, before: str) -> State:
            rest: State = {}
            for name, value in node.items():
                full = before + name
                if isinstance(value, dict):
                    rest[name] = plain(value, f"{full}.")
                elif (
                    self.shards and isinstance(value, longvectors.GrowingRows) and value and isinstance(value[0], Piece)
                ):
                    laid.update({f"{full}.{j}": (row, 0) for j, row in enumerate(value)})
                    apart(full, value[0], 0, rows=len(value))
                elif isinstance(value, Piece):
                    axis = _array(self.rule, full.split(".")).long
                    laid[full] = value, axis
                    apart(full, value, axis)
                elif isinstance(value, longvectors.GrowingRows):
                    if not self.writes:
                        continue
                    described[full] = {"rows": self._append(name, value)}
                    growing.add(name)
                elif isinstance(value, torch.Tensor):
                    packed[full] = np.frombuffer(content(value), dtype=np.uint8)
                    described[full] = {"shape": list(value.shape), "dtype": arrays.dtype_name(value.dtype)}
                elif isinstance(value, np.ndarray):
                    packed[full], described[full] = value, {"shape": list(value.shape)}
                else:
                    rest[name] = value
            return rest

        header = {"state": plain(state, ""), "arrays": described, "format": FORMAT, "identity": self.identity}
        if self.shards is not None:
            self._write_apart(folder, laid, packed, header)
            return
        done = [self.beside.pop(name) for name in self.beside.keys() - growing]
        persist.save_arrays(self.path, packed, {**header, "spent": self.counted})
        for file in done:
            file.remove()

    def _write_apart(self, folder: Path, laid: Any, packed: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        """Pieces by all ranks into the folder that the file on disk does not name, then the file by the first rank."""
        problem = None
        if laid:
            scattered.save(folder, laid, self.shards)  # type: ignore[arg-type]
        try:
            if self.writes:
                persist.save_arrays(self.path, packed, {**header, "spent": self.counted})
        except OSError as failure:
            problem = failure
        if told := distributed.first(problem):
            raise told
        self.folder = folder.name if laid else ""

    def _append(self, name: str, vectors: Sequence[torch.Tensor]) -> tuple[int, str]:
        """Write what is new of these rows; returns the mark of all so far."""
        file = self.beside.setdefault(name, persist.Rows(self._beside(name)))
        there = file.size // (self.op.shape[0] * self.op.dtype.itemsize)
        if there >= len(vectors):
            return file.mark
        return file.append(content(vectors[j]) for j in range(there, len(vectors)))

    # Reading -----------------------------------------------------------------------------------------------------------
    def _beside(self, name: str) -> Path:
        path = Path(self.path or "")
        return path.with_name(f"{path.name}.{name}")

    def damaged(self, what: str) -> ValueError:
        """What to raise about a file that holds something else than its run."""
        return ValueError(f"{self.path} is damaged: {what}; delete it and run again.")

    def _put(self, state: State, full: str, value: Any) -> None:
        """A value into its place, which the state must leave open."""
        *places, name = full.split(".")
        node: Any = state
        for place in places:
            node = node.get(place) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node:
            raise self.damaged(f"{full} has no place in it")
        node[name] = value

    def _unpacked(self, packed: dict[str, np.ndarray], header: dict[str, Any]) -> State:
        """The state, arrays in their places; what an array says of its size is held against what is there before it is made."""
        state: State = header["state"]
        for full, about in header["arrays"].items():
            if "pieces" in about:  # which every rank reads for itself, afterwards
                continue
            rows = "rows" in about
            made = self._rows(full.rpartition(".")[2], about["rows"]) if rows else self._array(full, about, packed)
            self._put(state, full, made)
        if packed:
            raise self.damaged(f"it holds {', '.join(sorted(packed))}, which nothing needs")
        return state

    def _pieces(self, name: str, about: dict[str, Any]) -> Any:
        """This rank's piece of a vector, or of each of many rows."""
        folder, dtype = Path(self.path or "").with_name(about["pieces"]), getattr(torch, about["dtype"])

        def part(name: str) -> torch.Tensor:
            shape, axis = about["shape"], about["axis"]
            return scattered.load(folder, name, shape, axis, dtype, self.shards).to(self.op.device)  # type: ignore[arg-type]

        return longvectors.GrowingRows(lambda j: part(f"{name}.{j}"), about["rows"]) if "rows" in about else part(name)

    def _rows(self, name: str, mark: Sequence[Any]) -> longvectors.GrowingRows:
        """Vectors (n,) from the file beside, as far as the mark counts them, each read when it is asked for."""
        file = self.beside[name] = persist.Rows(self._beside(name), (mark[0], mark[1]))
        if not file.size:
            file.remove()  # what a run that was killed has left
        each = self.op.shape[0] * self.op.dtype.itemsize
        if file.size % each:
            raise self.damaged(f"{name} is not of the size that it says")

        def row(j: int) -> torch.Tensor:
            q = torch.empty(self.op.shape[0], dtype=self.op.dtype)
            file.read(j * each, q.view(torch.uint8).numpy())
            return q.to(self.op.device)

        return longvectors.GrowingRows(row, file.size // each)

    def _array(self, name: str, about: dict[str, Any], packed: dict[str, np.ndarray]) -> np.ndarray | torch.Tensor:
        """The array of this name as it was."""
        array, shape = packed.pop(name, None), tuple(about["shape"])
        dtype = getattr(torch, about["dtype"]) if "dtype" in about else None  # of a tensor, which is there as its bytes
        due = shape if dtype is None else (math.prod(shape) * dtype.itemsize,)
        if array is None or array.shape != due or (dtype is not None and array.dtype != np.uint8):
            raise self.damaged(f"{name} is not of the size that it says")
        if dtype is None:
            return array
        # numpy's empty arrays have no stride
        memory = torch.from_numpy(array).clone(memory_format=torch.contiguous_format)
        return memory.view(dtype).reshape(shape).to(self.op.device)


def _array(rule: Rule | None, names: list[str]) -> Any:
    """What a rule says of the array of this name, level by level."""
    if isinstance(rule, Either):
        return next((found for one in rule.rules if (found := _array(one, names)) is not None), None)
    if isinstance(rule, Fields) and names:
        return _array({**rule.must, **rule.may}.get(names[0]), names[1:])
    return rule if isinstance(rule, Array) and not names else None


def _whole(node: Any) -> Any:
    """A state as other ranks can be sent it: rows as one tensor."""
    if isinstance(node, dict):
        return {name: _whole(value) for name, value in node.items()}
    return node.tensor() if isinstance(node, longvectors.GrowingRows) else node


def content(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: numpy has no bfloat16."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
