"""A linear map of one batch, recorded once as a program and run again without what does not depend on its argument.

J v, J^T u, J^T H J v and H v are linear in their vector, and almost all that computing them takes (the forward pass, the
derivatives of every activation) does not depend on it. `record` runs a linear function once under a dispatch mode, writes down
the operations whose operands depend on the argument, and keeps the other operands as constants: partial evaluation
(Jones, Gomard, Sestoft 1993), below autograd and torch.func, so that it does not matter how the derivative was taken. It is
not `torch.func.linearize`: a constant that is overwritten later on is copied before, so that in-place models are right too.

`folded` then multiplies out what lies between matrix products: whatever a GELU's derivative takes, it is one diagonal matrix.
`Program.batched` is the same program for b arguments at a time, over the same constants. `Program.adder` adds the pieces to
a sum that is there (or writes a new one), the matrix products among them in place: a weight's gradient is written once, not made,
read and added.

Nothing here is trusted: a program is held to what its function gave while it was recorded, and the first batch's to two
products more before it multiplies alone.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from spectral import arrays
from spectral.engine import private
from spectral.engine.capture import Captured
from spectral.engine.passes import cse, fold, reinplace
from spectral.engine.passes.cse import Node, aten

Pieces = tuple[torch.Tensor, ...]
Linear = Callable[[torch.Tensor], Pieces]  # v (n,) -> what follows one another in w (m,), in any shapes
SAME = (aten.detach.default, aten.alias.default)  # of a value that no graph is asked of
SHAPES = (aten.is_same_size.default, private.has_same_storage_numel)  # tell nothing of the values
# of what lies where in a storage
PLACED = (aten.as_strided.default, aten.as_strided_scatter.default, aten.view_as_complex.default, aten.view.dtype)
INTO = {aten.mm.default: aten.addmm_.default, aten.bmm.default: aten.baddbmm_.default}
ADDED = {aten.addmm.default: aten.addmm_.default, aten.baddbmm.default: aten.baddbmm_.default}


def vmap(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`torch.func.vmap` without torch's warning that some operation is mapped in a loop, which changes no number."""
    mapped = torch.func.vmap(function, **options)

    def quiet(*given: Any) -> Any:
        with private.mapped_in_silence():
            return mapped(*given)

    return quiet


class Unrecordable(RuntimeError):
    """The function is no fixed linear program of its argument."""


class Tracer(private.DispatchMode):
    """Writes the operations that depend on the inputs into a graph; other operands become its constants."""

    def __init__(
        self, inputs: list[torch.Tensor], copies: bool, room: float = math.inf, own: Iterable[int] = ()
    ) -> None:
        """`room`: bytes that constants may take, those in the storages `own` not counted."""
        super().__init__()
        self.graph, self.room, self.counted, self.held = fx.Graph(), room, set(own), 0
        self.copies = copies  # copy each constant when it is met, since something overwrites it later
        self.constants: list[tuple[Node, torch.Tensor, int]] = []  # or copies, with their versions when they were met
        self.doubles: dict[Any, list[int]] = {}  # places of constants that may hold the same numbers
        self.nodes: dict[Any, Node] = {}  # of values by id, of constants by id and version
        self.storages: dict[int, list[Node]] = {}  # address of a storage: the values that lie in it
        self.alive: dict[
            Any, weakref.ref[torch.Tensor]
        ] = {}  # whose ids are taken: a tensor dies as it would unrecorded
        self.given = inputs
        self.inputs = [self._own(t, self.graph.placeholder(f"v{i}")) for i, t in enumerate(inputs)]

    def _own(self, tensor: torch.Tensor, node: Node) -> Node:
        self._name(tensor, node)
        node.meta.update(shape=tensor.shape, dtype=tensor.dtype, strides=tensor.stride(), device=tensor.device)
        if tensor.layout == torch.strided:
            self.storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(node)
        return node

    def _name(self, tensor: torch.Tensor, node: Node, version: int | None = None) -> None:
        key = id(tensor) if version is None else (id(tensor), version)
        nodes = self.nodes  # not self, so that the inputs go with whoever holds the tracer, and not at a collection
        nodes[key] = node
        self.alive[key] = weakref.ref(tensor, lambda _: nodes.pop(key, None))

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node of a recorded value, or of a constant."""
        known = self.nodes.get(id(tensor))
        if known is not None:
            return known
        key = id(tensor), private.version(tensor)
        if key not in self.nodes:
            self._name(tensor, self._constant(tensor), private.version(tensor))
        return self.nodes[key]

    def _constant(self, tensor: torch.Tensor) -> Node:
        """A new constant, or the one that holds the same numbers: a forward pass that is run k times is kept once."""
        alike: list[int] = []
        if tensor.layout == torch.strided and tensor.numel() >= cse.LEAST and not tensor.is_meta:
            alike = self.doubles.setdefault(cse.likeness(tensor), [])
        for i in alike:
            if torch.equal(self.constants[i][1], tensor):
                return self.constants[i][0]
        self._hold(tensor)
        alike.append(len(self.constants))
        node, kept = self.graph.get_attr(f"c{len(self.constants)}"), tensor.detach().clone() if self.copies else tensor
        self.constants.append((node, kept, private.version(tensor)))
        return node

    def _hold(self, tensor: torch.Tensor) -> None:
        """Count a constant that is about to be kept, unless its memory is there anyway."""
        storage = tensor.untyped_storage() if tensor.layout == torch.strided else None
        if storage is None or (not self.copies and storage.data_ptr() in self.counted):
            return
        self.counted.add(storage.data_ptr())
        size = tensor.numel() * tensor.element_size() if self.copies else storage.nbytes()
        if self.held + size > self.room:
            raise Unrecordable("what a program would keep exceeds the memory budget, memory=")
        self.held += size

    @property
    def overwritten(self) -> bool:
        """Whether a constant has been written to after it was met."""
        return not self.copies and any(private.version(constant) != version for _, constant, version in self.constants)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, tree = private.tree_flatten((args, kwargs))
        zeros = [isinstance(x, torch.Tensor) and private.is_zero(x) for x in leaves]
        if any(zeros):
            # forward AD's zeros without memory are handled above a dispatch mode; kernels called from here would read them
            leaves = [
                torch.zeros(x.shape, dtype=x.dtype, device=x.device) if zero else x
                for x, zero in zip(leaves, zeros, strict=True)
            ]
            args, kwargs = private.tree_unflatten(leaves, tree)
        depends = any(isinstance(x, torch.Tensor) and id(x) in self.nodes for x in leaves)
        if depends:
            self._refuse_writes(func, args, kwargs)
            operands = [self.node_of(x) if isinstance(x, torch.Tensor) else x for x in leaves]
        out = func(*args, **kwargs)
        if not depends or func in SHAPES:
            return out
        if func in SAME:
            self._name(out, self.nodes[id(leaves[0])])
            return out
        a, k = private.tree_unflatten(operands, tree)
        node = self.graph.call_function(func, tuple(a), k)
        if private.schema(func).is_mutable and isinstance(args[0], torch.Tensor):
            shared = self.storages.get(args[0].untyped_storage().data_ptr(), [])
            node.meta["aliases"] = [other for other in shared if other is not a[0]]
        if isinstance(out, torch.Tensor):
            self._own(out, node)
        elif isinstance(out, tuple | list):
            for i, part in enumerate(out):
                if isinstance(part, torch.Tensor):
                    self._own(part, self.graph.call_function(operator.getitem, (node, i)))
        elif out is not None:
            raise Unrecordable(f"{func} turns a product's values into a number that decides what is computed")
        return out

    def _refuse_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        written = private.written_by(func, args, kwargs)
        if written is None:
            raise Unrecordable(f"this torch does not say which operands {func} writes")
        if any(isinstance(t, torch.Tensor) and id(t) not in self.nodes for t in written):
            raise Unrecordable(f"{func} writes a product's values into a tensor that was made before")


class Program:
    """A recorded linear map: `program(v) -> pieces`; `constants` are what it keeps, `module` (v, *constants) -> pieces."""

    def __init__(self, module: fx.GraphModule, constants: list[torch.Tensor]) -> None:
        self.module, self.constants = module, constants
        self.run: Callable[..., Pieces] = module
        self.sum: Callable[..., Any] | None = None  # `adder`, once someone has made it
        self.put: Callable[..., Any] | None = None  # `adder(new=True)`
        self.seen: Pieces | None = None  # what the function gave when it was recorded, until someone has compared
        self.held = 0  # bytes of constants that recording it held, those that folding made included
        self.captured: Captured | None = None  # launches it at once, on a GPU
        self.placed = any(node.target in PLACED for node in module.graph.nodes)

    def __call__(self, v: torch.Tensor) -> Pieces:
        with torch.no_grad():
            return self.run(self._alone(v), *self.constants)

    def _alone(self, v: torch.Tensor) -> torch.Tensor:
        """A vector that begins its storage, as the one did that was recorded, where an operation counts from there."""
        return v.clone() if self.placed and v.storage_offset() else v

    def add(self, v: torch.Tensor, w: torch.Tensor, new: bool = False) -> None:
        """w (m,) += the product with v (n,), or w = the product if `new`; w (b, m) for a block's program."""
        if self.captured is not None and w.ndim == 1:
            self.captured.add(v, w, new)
        else:
            self._launched(v, w, new)

    def _launched(self, v: torch.Tensor, w: torch.Tensor, new: bool) -> None:
        """`add`, one operation after the other."""
        run = self.put if new else self.sum
        if run is None:
            add_pieces(w, self(v), new)
            return
        sums, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape[w.ndim - 1 :])
            sums.append(w[..., start : start + size].view(shape))
            start += size
        with torch.no_grad():
            run(self._alone(v), *self.constants, *sums)

    def capture(self, v: torch.Tensor) -> None:
        """Launch its kernels at once from now on, for vectors like v (n,)."""
        self.captured = Captured(lambda v, w: self._launched(v, w, True), v, sum(map(math.prod, self.shapes)))

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the pieces."""
        (out,) = self.module.graph.find_nodes(op="output")
        return [node.meta["shape"] for node in out.args[0]]  # type: ignore[union-attr]

    @property
    def pure(self) -> bool:
        """No operation writes in place, so that operations may be regrouped."""
        schemas = (private.schema(node.target) for node in self.module.graph.nodes)
        return not any(schema is not None and schema.is_mutable for schema in schemas)

    def bytes(self, own: set[int]) -> int:
        """Of the constants beyond the storages `own` (of the parameters and the data, say), and of a CUDA graph's vectors."""
        kept = self.captured.bytes if self.captured is not None else 0
        return kept + sum(size for address, size in arrays.storages(self.constants).items() if address not in own)

    @property
    def operations(self) -> int:
        """How many it runs."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def batched(self, columns: int) -> Program:
        """The same program for (columns, n) -> pieces (columns, ...), by vmap, over the same constants."""
        if not self.pure:
            raise Unrecordable("a program that writes in place takes one vector at a time")
        v = next(node.meta for node in self.module.graph.nodes if "device" in node.meta)
        V = torch.zeros(columns, *v["shape"], dtype=v["dtype"], device=v["device"])
        mapped = vmap(self.module, in_dims=(0, *[None] * len(self.constants)))
        with torch.no_grad(), Tracer([V, *self.constants], copies=False) as recorder:
            out = mapped(V, *self.constants)
        program = _finish(recorder, out)
        if not program.pure:
            return program
        cse.share(program.module.graph, {})  # the constants stay, being the arguments of all batches
        fold.sum_products(program.module.graph)
        program.module.recompile()
        return program

    def adder(self, new: bool = False) -> fx.GraphModule:
        """The program that adds its pieces: (v, *constants, *sums like the pieces) -> (); that writes them if `new`."""
        graph = fx.Graph()
        names: dict[Node, Node] = {}
        pieces = graph.graph_copy(self.module.graph, names)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        for i, piece in enumerate(pieces):  # type: ignore[arg-type]
            with graph.inserting_after(inputs[-1]):
                inputs.append(graph.placeholder(f"w{i}"))
            inputs[-1].meta["dtype"] = inputs[0].meta["dtype"]
            _add_in_place(graph, inputs[-1], piece, new)
        graph.output(())
        graph.eliminate_dead_code()
        reinplace.fuse(graph)
        reinplace.reuse(graph)
        return fx.GraphModule(torch.nn.Module(), graph)

    def key(self) -> tuple[Any, ...]:
        """Programs of one key differ in the values of their constants alone."""
        return (self.module.code, *((c.shape, c.stride(), c.dtype, str(c.device)) for c in self.constants))


def recording() -> bool:
    """Whether `record` is under way."""
    return any(isinstance(mode, Tracer) for mode in private.dispatch_modes())


def add_pieces(w: torch.Tensor, pieces: Pieces | list[Any], new: bool = False) -> None:
    """w (m,) += pieces that follow one another, or w = these if `new`; w (b, m) for pieces (b, ...).

    A list of pieces is emptied meanwhile: a new w takes memory as it is written, so that there are never two of its size.
    """
    start = 0
    for i in range(len(pieces)):
        piece = pieces[i]
        if isinstance(pieces, list):
            pieces[i] = None
        size = piece.numel() if w.ndim == 1 else piece[0].numel()
        part, piece = w[..., start : start + size], piece.reshape(*w.shape[:-1], size)
        if not new:
            part.add_(piece)
        elif piece.data_ptr() != part.data_ptr():  # else it has been written there
            part.copy_(piece)
        start += size


def flat(pieces: Pieces) -> torch.Tensor:
    """w (m,)."""
    return torch.cat([piece.reshape(-1) for piece in pieces])


def record(function: Linear, v: torch.Tensor, room: float = math.inf, own: Iterable[int] = ()) -> Program:
    """The program of a linear function, from one run at `v` (n,).

    `Unrecordable` where its constants would take more than `room` bytes, beside the storages `own` that are there anyway.
    """
    recorder, out = _recorded(function, v, False, room, own)
    if recorder.overwritten:
        del recorder, out
        recorder, out = _recorded(function, v, True, room, own)
    program, held = _finish(recorder, out), recorder.held
    del recorder  # its constants are the program's, which folding replaces one by one
    program = folded(program) if program.pure else program
    if program.bytes(set(own)) > room:
        raise Unrecordable("what a program would keep exceeds the memory budget, memory=")
    program.seen, program.held = out, program.held + held
    return program


def _recorded(
    function: Linear, v: torch.Tensor, copies: bool, room: float, own: Iterable[int]
) -> tuple[Tracer, Pieces]:
    argument = arrays.copy(v.detach())
    with Tracer([argument], copies, room, own) as recorder:
        return recorder, function(argument)


def _functionalise(graph: fx.Graph) -> None:
    """x.op_(y) -> x.op(y) where nothing reads x's memory by another name afterwards; its own name means the new value."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if "aliases" not in node.meta:
            continue
        name, overload = str(node.target).removeprefix("aten.").split(".")
        twin = getattr(getattr(aten, name.removesuffix("_"), None), overload, None) if name.endswith("_") else None
        read = any(order[user] > order[node] for other in node.meta["aliases"] for user in other.users)
        if twin is not None and not private.schema(twin).is_mutable and not read:
            node.target = twin


def _finish(recorder: Tracer, out: Pieces) -> Program:
    """Constants become arguments after the inputs, dead operations go."""
    graph = recorder.graph
    graph.output(tuple(recorder.node_of(piece) for piece in out))
    _functionalise(graph)
    graph.eliminate_dead_code()
    kept = {node: value for node, value, _ in recorder.constants}
    values = list(recorder.given[1:])  # what was an input after v is a constant already
    last = recorder.inputs[-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        with graph.inserting_after(last):
            last = graph.placeholder(f"k{len(values)}")
        last.meta.update(shape=kept[node].shape, dtype=kept[node].dtype)
        values.append(kept[node])
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    return Program(fx.GraphModule(torch.nn.Module(), graph), [value.detach() for value in values])


def _add_in_place(graph: fx.Graph, total: Node, piece: Node, new: bool, flipped: bool = False) -> None:
    """total += piece (transposed): products go there by themselves, sums in their parts, whatever views lie between.

    `new`: the first part is written, whatever total holds.
    """
    while len(piece.users) <= 1 and ((flips := _flips(piece)) or _renames(piece)):
        flipped, piece = flipped != flips, piece.args[0]
    # a gradient in the dtype of products, float32 sums it up
    alone = len(piece.users) <= 1 and piece.meta["dtype"] == total.meta["dtype"]
    if alone and piece.target is aten.add.Tensor and not piece.kwargs and all(cse.alike(a, piece) for a in piece.args):
        for part in piece.args:
            _add_in_place(graph, total, part, new, flipped)
            new = False
        return
    added = alone and piece.target in ADDED and cse.alike(piece.args[0], piece)
    if added:
        _add_in_place(graph, total, piece.args[0], new, flipped)
    if flipped:
        total = graph.call_function(aten.transpose.int, (total, -2, -1))
    if added:
        graph.call_function(ADDED[piece.target], (total, *piece.args[1:]))
    elif alone and piece.target in INTO:  # beta = 0 reads nothing, NaN neither
        graph.call_function(INTO[piece.target], (total, *piece.args), {"beta": 0} if new else {})
    else:
        graph.call_function(aten.copy_.default if new else aten.add_.Tensor, (total, piece))


def _flips(node: Node) -> bool:
    """Whether a node swaps the last two axes."""
    axes = len(node.meta.get("shape", ()))
    swapped = node.target is aten.transpose.int and {a % axes for a in node.args[1:]} == {axes - 2, axes - 1}
    return swapped or (node.target is aten.t.default and axes == 2)


def _renames(node: Node) -> bool:
    """Whether a node is a view of the shape that it views."""
    return node.target in cse.VIEWS and cse.alike(node.args[0], node)


def folded(program: Program) -> Program:
    """Compute here once all that does not depend on the argument, and keep once what is kept; see `fold.simplify`.

    The value changes by rounding alone.
    """
    graph = program.module.graph
    names = [node for node in graph.nodes if node.op == "placeholder"]
    value = dict(zip(names[1:], program.constants, strict=True))
    program.constants = []  # held here alone, and dropped one by one
    made = fold.simplify(graph, value)
    simpler = Program(fx.GraphModule(torch.nn.Module(), graph), [value[node] for node in graph.nodes if node in value])
    simpler.held = made
    return simpler
