"""What data from outside must be, said once: kinds, sizes, ranges and laws, for files and configurations alike.

A rule checks one value and says in words what it asks for; rules are put together as the data are. Sizes that belong together
have a name: given with the check, or taken from the first array that has it.

>>> PAIR = Fields({"x": Array("float64", "n"), "y": Array("float64", "n", least=0)}, {"seed": Number(whole=True, least=0)})
>>> PAIR.check({"x": np.ones(3), "y": np.zeros(3), "seed": 1}, "pair")
>>> PAIR.check({"x": np.ones(3), "y": np.zeros(2)}, "pair")
Traceback (most recent call last):
...
spectral.schema.Mismatch: pair.y must be an array of float64, (n=3,), >= 0, got an array of float64, (2,)
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from spectral import arrays
from spectral.longvectors import extremes
from spectral.pieces import Piece

MANY = 30  # choices that a sentence lists
FLOATS = ("float64", "float32", "float16", "bfloat16")  # dtypes of operators
MOST_WHOLE = 2**64 - 1  # what a seed may be
UNSAID = 2**62  # a bound that is none to a person
DEEP = 40  # levels of plain data
LONG = 60  # characters of a value that a sentence quotes
Sizes = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


class Mismatch(ValueError):
    """`where` holds `got`, and must be what `words` say."""

    def __init__(self, where: str, got: Any, words: str) -> None:
        super().__init__(f"{where} must be {words}, got {shown(got)}")
        self.where, self.got, self.words = where, got, words
        self.sentence = f"{where}={shown(got)} is not possible; use {words}."  # of a configuration


def shown(value: Any) -> str:
    """A value in one short line, as JSON and YAML have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"an array of {dtype_name(value)}, {_sides(tuple(value.shape))}"
    if isinstance(value, Mapping | list | tuple) and len(value) > 8:
        return f"{'a mapping' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of too many digits, a structure of too many levels
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def dtype_name(array: Any) -> str:
    """ "float64" and the like; the byte order where it is not this machine's."""
    if isinstance(array, torch.Tensor):
        return arrays.dtype_name(array.dtype)
    return array.dtype.name if array.dtype.isnative else array.dtype.str


def _sides(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


class Rule:
    """What one value must be; `words` follow "must be"."""

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        """Raise `Mismatch` unless the value is as the rule says."""
        sizes = {} if sizes is None else sizes
        if not self.holds(value, where, sizes):
            raise Mismatch(where, value, self.words(sizes))
        self.within(value, where, sizes)

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        raise TypeError(f"{type(self).__name__} holds nothing.")

    def within(self, value: Any, where: str, sizes: Sizes) -> None:
        """The same of what the value is made of."""

    def words(self, sizes: Sizes) -> str:
        raise TypeError(f"{type(self).__name__} has no words.")


def integer(value: Any, name: str, what: str, least: int = 1, most: int | None = None) -> int:
    """The keyword `name` as an integer from `least` to `most`; one sentence for anything else.

    >>> integer(0, "probes", "number of probes")
    Traceback (most recent call last):
    ...
    ValueError: probes=0 is no number of probes; use an integer >= 1.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= (MOST_WHOLE if most is None else most):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r} is no {what}; use an integer {allowed}.")
    return int(value)


SWITCH = (True, False)


def choice(value: Any, name: str, options: Iterable[Any]) -> None:
    """One sentence for a keyword `name` that is none of its options.

    >>> choice("fast", "method", ("auto", "slow"))
    Traceback (most recent call last):
    ValueError: method='fast' is not known; use one of auto, slow.
    """
    value = bool(value) if isinstance(value, np.bool_) else value
    if not any(isinstance(value, type(option)) and value == option for option in options):  # 0 is no False
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(str, options))}.")


def pair(value: Any, name: str = "interval") -> tuple[Any, Any]:
    """Two bounds, each a number or None: (None, None) of None; one sentence for anything else.

    >>> pair((0.0, None))
    (0.0, None)
    """
    row = (None, None) if value is None else value.tolist() if arrays.is_array(value) else value
    fits = isinstance(row, list | tuple) and len(row) == 2
    if not fits or not all(x is None or Number(finite=False).holds(item(x), name, {}) for x in row):
        raise ValueError(f"{name}={value!r} is no pair of bounds; use (a, b), each a number or None.")
    return row[0], row[1]


def reals(value: Any, name: str, what: str) -> np.ndarray:
    """Finite numbers, one or several, as float64; one sentence for anything else.

    >>> reals([1, 2.5], "shifts", "shift")
    array([1. , 2.5])
    """
    found = np.asarray(value)
    if isinstance(value, bool) or found.dtype.kind not in "iuf" or not found.size or not np.isfinite(found).all():
        raise ValueError(f"{name}={value!r} is no {what}; use a finite number, or an array of them.")
    return found.astype(np.float64)


def function(value: Any, name: str, of: str) -> None:
    """One sentence for a keyword `name` that cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}; use a function of {of}.")


def several(value: Any, name: str, what: str) -> None:
    """One sentence for a keyword `name` that is not a list of something."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"{name}={value!r} must be a list of {what}.")


def item(value: Any) -> Any:
    """A number of numpy's, or an array or a tensor of one without axes, as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") else value


# One value -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Number(Rule):
    """A number, whole where that is asked for; bounds are numbers or names of sizes, `above` and `below` exclude themselves."""

    whole: bool = False
    least: float | str | None = None
    most: float | str | None = None
    above: float | None = None
    below: float | None = None
    finite: bool = True  # False: infinities too
    nan: bool = False

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if isinstance(value, int):
            if abs(value) > MOST_WHOLE:
                return False
        elif math.isnan(value):
            return self.nan
        elif self.finite and math.isinf(value):
            return False
        least, most = (sizes[b] if isinstance(b, str) else b for b in (self.least, self.most))
        return (
            (least is None or value >= least)
            and (most is None or value <= most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def words(self, sizes: Sizes) -> str:
        least, most = (sizes[b] if isinstance(b, str) else b for b in (self.least, self.most))
        most = None if most is not None and most >= UNSAID else most
        kind = "a whole number" if self.whole else "a number" if self.finite else "a number or an infinite one"
        if least is not None and most is not None:
            return f"{kind} from {least} to {most}"
        bounds = ((">=", least), (">", self.above), ("<=", most), ("<", self.below))
        said = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
        if kind == "a number" and not said:
            return "a finite number"
        return f"{kind} {said}" if said else kind


COUNT, SIZE, REAL, SHARE = Number(True, least=0), Number(True, least=1), Number(), Number(least=0, most=1)
NONNEGATIVE, POSITIVE, FRACTION = Number(least=0), Number(above=0), Number(above=0, below=1)


def number(value: Any, name: str, what: str, rule: Number, such: object = "") -> None:
    """One sentence for a keyword `name` that is no number of this rule; `such` is one.

    >>> number(2, "tol", "tolerance", FRACTION, 1e-6)
    Traceback (most recent call last):
    ValueError: tol=2 is no tolerance; use a number > 0 and < 1, such as 1e-06.
    """
    if not rule.holds(item(value), name, {}):
        example = f", such as {such}" if such else ""
        raise ValueError(f"{name}={value!r} is no {what}; use {rule.words({})}{example}.")


@dataclass(frozen=True)
class Is(Rule):
    """What a test of one value takes, in the words `said`."""

    test: Callable[[Any], bool]
    said: str

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        return self.test(value)

    def words(self, sizes: Sizes) -> str:
        return self.said


def Flag() -> Is:
    """True or false, and nothing that might mean it."""
    return Is(lambda value: isinstance(value, bool), "true or false")


def Same(wanted: Any) -> Is:
    """Exactly this value."""
    return Is(lambda value: type(value) is type(wanted) and value == wanted, shown(wanted))


def Plain() -> Is:
    """Plain data of any form: numbers, texts, true, false and null in lists and mappings, at most DEEP levels."""
    return Is(lambda value: _plain(value, DEEP), f"plain data of at most {DEEP} levels")


def Checked(function: Callable[[Any], Any], said: str) -> Is:
    """What `function` takes without a ValueError or TypeError: for what the code that uses a value says already."""

    def takes(value: Any) -> bool:
        try:
            function(value)
        except (ValueError, TypeError, OverflowError):
            return False
        return True

    return Is(takes, said)


class Text(Rule):
    """One of `choices`; without any, a text that matches `pattern` and holds at most `most` characters."""

    def __init__(self, *choices: str, pattern: str | None = None, said: str = "a text", most: int = 100_000) -> None:
        self.choices, self.pattern, self.said, self.most = choices, pattern, said, most

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        if not isinstance(value, str):
            return False
        if self.choices:
            return value in self.choices
        return len(value) <= self.most and (self.pattern is None or bool(re.fullmatch(self.pattern, value)))

    def words(self, sizes: Sizes) -> str:
        if not self.choices:
            return self.said
        if len(self.choices) > MANY:
            return f"one of {', '.join(self.choices[:MANY])} and {len(self.choices) - MANY} more"
        *rest, last = self.choices
        return f"{'one of ' if len(rest) > 1 else ''}{', '.join(rest)} or {last}" if rest else last


def _plain(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels > 0 and all(isinstance(k, str) and _plain(v, levels - 1) for k, v in value.items())
    if isinstance(value, list | tuple):
        return levels > 0 and all(_plain(v, levels - 1) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


class Array(Rule):
    """An array of numpy or torch: its dtype (or the size of that name), its shape (None: any side, ...: any shape), its range."""

    def __init__(
        self, dtype: str, *shape: Any, least: float | None = None, most: float | None = None, above: float | None = None,
        finite: bool = True, ascending: bool = False,
    ) -> None:  # fmt: skip
        self.dtype, self.shape, self.ascending = dtype, shape, ascending
        self.entry = Number(least=least, most=most, above=above, finite=finite, nan=not finite)

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        if not isinstance(value, np.ndarray | torch.Tensor) or dtype_name(value) != sizes.get(self.dtype, self.dtype):
            return False
        free = self.shape == (...,)
        if not free and len(value.shape) != len(self.shape):
            return False
        apart = self.shape[self.long] if isinstance(value, Piece) else None  # of this side a rank has its part
        for side, have in () if free else zip(self.shape, value.shape, strict=True):
            if side == apart:
                continue
            want = sizes.setdefault(side, have) if isinstance(side, str) else side
            if want is not None and want != have:
                return False
        if isinstance(value, Piece):
            value = extremes(value)
        if 0 in value.shape or self.dtype == "bool":
            return True
        ends = value.min().item(), value.max().item()  # NaN where one is
        sorted_ = not self.ascending or bool((value[1:] >= value[:-1]).all())
        return sorted_ and all(self.entry.holds(end, where, sizes) for end in ends)

    @property
    def long(self) -> int:
        """The axis of vectors' entries."""
        return self.shape.index("n" if "n" in self.shape else "m")

    def words(self, sizes: Sizes) -> str:
        sides = ["any" if s is None else f"{s}={sizes[s]}" if s in sizes else s for s in self.shape]
        parts = [f"an array of {sizes.get(self.dtype, self.dtype)}"]
        parts += [] if self.shape == (...,) else [_sides(tuple(sides))]
        bounds = ((">=", self.entry.least), ("<=", self.entry.most), (">", self.entry.above))
        parts += ["finite"] if self.entry.finite and not any(bound is not None for _, bound in bounds) else []
        parts += [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
        return ", ".join(parts + (["ascending"] if self.ascending else []))


class Vectors(Rule):
    """A sequence of vectors (n,) of the run's dtype, alike, which may be read one at a time."""

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        if not isinstance(value, Sequence | torch.Tensor) or isinstance(value, str):
            return False
        v = value[0] if len(value) else None
        if v is None or not isinstance(v, torch.Tensor):
            return v is None
        return (isinstance(v, Piece) or v.shape == (sizes["n"],)) and dtype_name(v) == sizes["dtype"]

    def words(self, sizes: Sizes) -> str:
        return f"vectors of {sizes['n']} entries in {sizes['dtype']}"


NAME = Text(pattern=r"[^\0]+", said="a text")


# Several together --------------------------------------------------------------------------------------------------------
class Either(Rule):
    """What one of the rules takes; None stands for null."""

    def __init__(self, *rules: Rule | None) -> None:
        self.rules = rules

    def check(self, value: Any, where: str, sizes: Sizes | None = None) -> None:
        sizes = {} if sizes is None else sizes
        problems: list[Mismatch] = []
        for rule in self.rules:
            bound = dict(sizes)
            try:
                if rule is None:
                    if value is None:
                        return
                    continue
                rule.check(value, where, bound)
            except Mismatch as problem:
                problems.append(problem)
            else:
                sizes.update(bound)
                return
        deepest = max(problems, key=lambda p: len(p.where), default=None)
        if deepest is not None and deepest.where != where:  # of the right kind, wrong inside
            raise deepest
        if len(inside := [p for p in problems if isinstance(p, Unknown | Broken)]) == 1:
            raise inside[0]
        raise Mismatch(where, value, self.words(sizes))

    def words(self, sizes: Sizes) -> str:
        return " or ".join("null" if rule is None else rule.words(sizes) for rule in self.rules)


def maybe(rule: Rule) -> Either:
    """The rule, or null."""
    return Either(rule, None)


@dataclass(frozen=True)
class Items(Rule):
    """A list, each of its items by one rule; `count` is its length, a number or the name of a size."""

    rule: Rule
    least: int = 0
    most: int | None = None
    count: int | str | None = None
    distinct: bool = False

    def within(self, value: Any, where: str, sizes: Sizes) -> None:
        for i, item in enumerate(value):
            self.rule.check(item, f"{where}[{i}]", sizes)
        if self.distinct and len({repr(item) for item in value}) < len(value):
            raise Mismatch(where, value, "a list without repetitions")

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        if not isinstance(value, list | tuple):
            return False
        want = sizes.setdefault(self.count, len(value)) if isinstance(self.count, str) else self.count
        most = len(value) if self.most is None else self.most
        return self.least <= len(value) <= most and want in (None, len(value))

    def words(self, sizes: Sizes) -> str:
        want = sizes.get(self.count, self.count) if isinstance(self.count, str) else self.count
        many = f" of {want}" if want is not None else f" of at least {self.least}" if self.least else ""
        return f"a list{many}, each {self.rule.words(sizes)}"


class Row(Rule):
    """A list of as many items as there are rules."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def within(self, value: Any, where: str, sizes: Sizes) -> None:
        for i, (rule, item) in enumerate(zip(self.rules, value, strict=True)):
            rule.check(item, f"{where}[{i}]", sizes)

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        return isinstance(value, list | tuple) and len(value) == len(self.rules)

    def words(self, sizes: Sizes) -> str:
        return f"a list of {len(self.rules)}: {', '.join(rule.words(sizes) for rule in self.rules)}"


@dataclass(frozen=True)
class Law:
    """What the parts of a mapping have to do with each other: a function of it and the sizes, and what it says in words."""

    words: str
    holds: Callable[[Any, Sizes], bool]


def _true(law: Law, value: Any, sizes: Sizes) -> bool:
    """Whether a law holds; of numbers that nothing can be computed from, none does."""
    try:
        with np.errstate(all="ignore"):
            return bool(law.holds(value, sizes))
    except Mismatch:
        raise
    except (ValueError, LookupError, ArithmeticError):
        return False


@dataclass(frozen=True)
class Fields(Rule):
    """A mapping: fields that must be there, fields that may be, a rule for all others (None: there are no others), laws."""

    must: Mapping[str, Rule] = field(default_factory=dict)
    may: Mapping[str, Rule] = field(default_factory=dict)
    others: Rule | None = None
    laws: tuple[Law, ...] = ()

    def within(self, value: Any, where: str, sizes: Sizes) -> None:
        known = {**self.must, **self.may}
        for name in value:
            if not isinstance(name, str) or (name not in known and self.others is None):
                raise Unknown(where, name, list(known))
        for name, rule in known.items():
            if name in value:
                rule.check(value[name], _inside(where, name), sizes)
            elif name in self.must:
                raise Mismatch(_inside(where, name), None, f"{rule.words(sizes)}, and it must be there")
        for name in value:
            if name not in known and self.others is not None:
                self.others.check(value[name], _inside(where, name), sizes)
        for law in self.laws:
            if not _true(law, value, sizes):
                raise Broken(where or "it", law.words)

    def holds(self, value: Any, where: str, sizes: Sizes) -> bool:
        return isinstance(value, Mapping)

    def words(self, sizes: Sizes) -> str:
        names = ", ".join([*self.must, *self.may])
        return f"a mapping with {names}" if names and self.others is None else "a mapping"


# Functions --------------------------------------------------------------------------------------------------------------
RULED: dict[Callable[..., Any], Fields] = {}


def ruled(*must: str, **rules: Rule) -> Callable[[F], F]:
    """Keywords of a function with what they must be, where `held` and a configuration that names the function look it up."""

    def of(function: F) -> F:
        RULED[function] = Fields({name: rules.pop(name) for name in must}, rules)
        return function

    return of


def held(function: Callable[..., Any], given: Mapping[str, Any], **more: Rule) -> None:
    """Hold what a function was given, its `locals()`, against its rules and those beside.

    >>> @ruled(width=SIZE)
    ... def net(width=3):
    ...     held(net, locals())
    >>> net(width=0)
    Traceback (most recent call last):
    spectral.schema.Mismatch: width must be a whole number >= 1, got 0
    """
    for name, rule in {**RULED[function].must, **RULED[function].may, **more}.items():
        if name in given:
            value = given[name]
            plain = value.tolist() if hasattr(value, "tolist") else str(value) if isinstance(value, Path) else value
            rule.check(plain, name)


class Unknown(Mismatch):
    """A name that no rule knows."""

    def __init__(self, where: str, name: Any, known: list[str]) -> None:
        super().__init__(where or "it", name, "a mapping")
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        has = f"has {', '.join(known)}" if known else "has no settings of its own"
        full = _inside(where, name if isinstance(name, str) else shown(name))
        self.sentence = f"There is no {full}{hint}; {where or 'it'} {has}."
        self.args = (self.sentence.removesuffix("."),)


class Broken(Mismatch):
    """A law that does not hold."""

    def __init__(self, where: str, words: str) -> None:
        super().__init__(where, None, words)
        self.args = (f"{where} must have {words}",)
        self.sentence = f"{self.args[0]}; change one of its settings."


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)
