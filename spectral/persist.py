"""Files that are whole or absent: atomic writes, and arrays with a checksum and without pickles.

Nothing is written or read through a link: what stands beside a file of ours, or under its name, may have been put there by
somebody else.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import secrets
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectral import failures, schema

try:
    import fcntl
except ImportError:  # Windows, which replaces and removes no file that is open: it needs no locks
    fcntl = None  # type: ignore[assignment]

DAMAGE = (  # what numpy, zipfile, zlib and json raise for a file that is not whole
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, OSError, EOFError, ValueError, TypeError, LookupError,
    ArithmeticError, AttributeError, NotImplementedError, RuntimeError, SyntaxError, MemoryError,
)  # fmt: skip
# What may pass while a run goes on.
FULL = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE
READ = 1 << 24  # bytes at a time
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none; links are looked for beforehand everywhere
KINDS = "fiub"  # of arrays in a file: numbers and truth values


def atomic_write(path: Any, content: bytes) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(content)


def append_line(path: Any, line: str) -> None:
    """Write a line behind a text file; it is on disk when this returns. A crash leaves no more than a part of this line."""
    target = own(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK
    with os.fdopen(os.open(target, flags, 0o666), "ab") as file:
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Any) -> list[str]:
    """The lines of a text file, none where there is no file; the part of a line that a crash has left is cut off."""
    if not own(path).exists():
        return []
    with open(path, "r+b") as file:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            file.truncate(len(whole))
    try:
        return whole.decode().splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is damaged or was not written by spectral; delete it.") from problem


@contextmanager
def whole_file(path: Any) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path`, a link there included, when all is written and on disk.

    Its mode follows the umask. Leftovers of writers that were killed are removed.
    """
    target = named(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it.")
    _ordinary(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, glob.escape(target.name))
    handle, temporary = _temporary(target)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, target)  # before the lock is gone
        if fcntl is None:
            os.replace(temporary, target)
    except OSError as problem:
        problem.filename = str(target)  # a write that fails names none, and nobody knows the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)  # there only if something failed
    if fcntl is not None:  # Windows opens no folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(target: Path) -> tuple[int, Path]:
    """A new file beside `target`, locked as long as its writer lives, which is what tells it from a leftover."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks
            _lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # somebody swept it away before it was locked


def _lock(handle: int) -> None:
    """Until it is closed; OSError where somebody else has it."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of the files `name`, a pattern, have left in a folder."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        with suppress(OSError):
            if not leftover.is_symlink():
                handle = os.open(leftover, os.O_RDONLY | NO_LINK)
                try:
                    _lock(handle)  # fails while its writer lives
                finally:
                    os.close(handle)
            leftover.unlink()


def own(path: Any) -> Path:
    """`path` as a file of ours; ValueError where a link stands there, TypeError for what is no path."""
    path = named(path)
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is read or written through links; remove it.")
    return path


def named(path: Any) -> Path:
    """`path` as the name of a file; TypeError for a number, which would be an open file, and for whatever else is no path."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise TypeError(f"{path!r} is no path; give the name of a file.")
    return Path(path)


def _ordinary(target: Path) -> None:
    """ValueError where a device, a pipe or a socket stands, which a rename would put a file in place of."""
    try:
        kind = target.stat().st_mode  # of what a link leads to: /dev/stdout is one
    except (OSError, ValueError):  # nothing there, or a name that cannot be, which whoever opens it tells
        return
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ValueError(f"{target} is a device, a pipe or a socket, which a file would replace; name another file.")


def own_folder(path: Any) -> Path:
    """`path` as a folder of ours in which no link leads out of it; ValueError with the first that does."""
    folder = own(path)
    home = folder.resolve()
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            found = Path(parent, name)
            if found.is_symlink() and not found.resolve().is_relative_to(home):
                raise ValueError(f"{found} is a link out of {folder}, and nothing is written through links; remove it.")
    return folder


def claim(path: Any) -> Path:
    """`path` as the place of a file of ours: its folder is made and can be written to, leftovers are gone; else one sentence."""
    target = own(path)
    _ordinary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        possible = os.access(target.parent, os.W_OK | os.X_OK) and not target.is_dir()
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} cannot be written ({_why(problem)}); name a file in another folder.") from problem
    if not possible:
        raise ValueError(f"{path} cannot be written there; name a file in a folder that can be written to.")
    sweep(target.parent, glob.escape(target.name))
    return target


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, nobody else is inside with the same folder; ValueError where somebody is."""
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)  # Windows opens no folder
    try:
        try:
            if handle is not None:
                _lock(handle)
        except BlockingIOError as problem:
            raise ValueError(f"Another run is writing into {folder}; give this one a folder of its own.") from problem
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if handle is not None:
            with suppress(OSError):  # a child of a fork, which has the handle too, may live on
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


@contextmanager
def forgiving(path: Any) -> Iterator[None]:
    """A save inside that fails because the disk is full warns, and the run goes on: the last one stands, the next tries again."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        warnings.warn(
            f"{path} could not be saved ({_why(problem)}): the run goes on, and the next save tries again.",
            stacklevel=4,
        )


def _why(problem: BaseException) -> str:
    return str(getattr(problem, "strerror", None) or problem)


class Rows:
    """An append-only file of vectors: a save costs what is new. What a crash left behind the last mark is cut off again.

    What is written and read passes by in pieces, so that the file is never in memory whole.
    """

    def __init__(self, path: Any, mark: tuple[int, str] | None = None) -> None:
        """`mark` as `append` gave it: the file must hold what it held then, ValueError if not; None begins anew."""
        self.path, self.size, self.digest = own(path), 0, hashlib.sha256()
        if mark is None or mark[0] == 0:
            return
        try:
            with self._opened() as file:
                if mark[0] <= os.fstat(file.fileno()).st_size:
                    while self.size < mark[0] and (piece := file.read(min(READ, mark[0] - self.size))):
                        self.digest.update(piece)
                        self.size += len(piece)
                    file.truncate(mark[0])
        except FileNotFoundError as problem:
            raise ValueError(
                f"{path} is missing, which belongs to a checkpoint; delete that and run again."
            ) from problem
        if (self.size, self.digest.hexdigest()) != tuple(mark):
            raise ValueError(
                f"{path} is damaged (its checksum does not fit); delete it with its checkpoint and run again."
            )

    def _opened(self, flags: int = 0) -> IO[bytes]:
        return os.fdopen(os.open(self.path, os.O_RDWR | NO_LINK | flags, 0o666), "r+b")

    @property
    def mark(self) -> tuple[int, str]:
        """(bytes, SHA-256) of all so far."""
        return self.size, self.digest.hexdigest()

    def append(self, contents: Iterable[bytes]) -> tuple[int, str]:
        """Write behind what is there; returns the mark of all so far."""
        size, digest = self.size, self.digest.copy()
        own(self.path).parent.mkdir(parents=True, exist_ok=True)
        with self._opened(os.O_CREAT) as file:
            file.seek(size)  # behind the last mark, whatever an interrupted append has left there
            for content in contents:
                file.write(content)
                digest.update(content)
                size += len(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self.size, self.digest = size, digest  # both or, where a signal comes, none
        return self.mark

    def read(self, start: int, memory: np.ndarray) -> None:
        """What stands from byte `start` on, into `memory` (bytes,)."""
        with self._opened() as file:
            file.seek(start)
            if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
                raise ValueError(f"{self.path} has become shorter; delete it with its checkpoint and run again.")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def fingerprint(description: Any) -> str:
    """A short hash of plain JSON data: equal descriptions, equal fingerprints."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_arrays(path: Any, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """One .npz of arrays and a JSON header, with a SHA-256 over both, written atomically."""
    packed = {name: np.asarray(array) for name, array in arrays.items()}
    text = json.dumps(header)  # in its order, in which a resumed run prints what was stored
    packed["header"] = np.frombuffer(text.encode(), dtype=np.uint8)
    packed["checksum"] = np.frombuffer(bytes.fromhex(_checksum(packed)), dtype=np.uint8)
    with whole_file(path) as file:
        np.savez(file, **packed)  # type: ignore[arg-type]


def load_arrays(path: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, header) of what `save_arrays` wrote; ValueError with one sentence if the file is damaged or foreign."""
    path = named(path)
    try:
        with open(path, "rb") as file:
            packed = members(file)
        stored = packed.pop("checksum").tobytes().hex()
        header = json.loads(packed["header"].tobytes())
    except (FileNotFoundError, IsADirectoryError, PermissionError) as problem:
        raise type(problem)(failures.of_file(problem)) from problem
    except DAMAGE as problem:
        raise ValueError(f"{path} is damaged or was not written by spectral; delete it and run again.") from problem
    if stored != _checksum(packed):
        raise ValueError(f"{path} is damaged (its checksum does not fit); delete it and run again.")
    if not isinstance(header, dict):
        raise ValueError(f"{path} was not written by spectral: its header is no mapping; delete it.")
    return {name: array for name, array in packed.items() if name != "header"}, header


def members(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of an .npz that is open, each allocated only once its size is known to be there.

    They must be stored as they are, so that together they are no larger than the file. ValueError and others of DAMAGE for
    anything else: objects, names met twice, sizes that do not fit.
    """
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("a name is met twice.")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("an array is compressed.")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("the arrays are larger than the file.")
        found = {}
        for entry in entries:
            with archive.open(entry) as part:
                found[entry.filename.removesuffix(".npy")] = _array(part, entry.file_size)
        return found


def _array(part: IO[bytes], size: int) -> np.ndarray:
    """One array in numpy's format that takes `size` bytes together with its head."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[np.lib.format.read_magic(part)](part)
    if (
        dtype.kind not in KINDS
        or dtype.hasobject
        or dtype.shape
        or any(type(side) is not int or side < 0 for side in shape)
    ):
        raise ValueError(f"an array of {dtype}, {shape} is none of numbers.")
    count = math.prod(shape) * dtype.itemsize
    if count != size - part.tell() or len(shape) > 8:
        raise ValueError(f"an array of {dtype}, {shape} does not take {size} bytes.")
    part.seek(0)
    array = np.lib.format.read_array(part, allow_pickle=False)
    part.read(1)  # the end of the member, where its checksum is looked at
    return array


def load_own(path: Any, form: str, identity: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """`load_arrays` of a checkpoint of this format and identity; ValueError for any other."""
    packed, header = load_arrays(own(path))
    if header.get("format") != form or header.get("identity") != identity:
        raise ValueError(
            f"the checkpoint {path} is of another operator, seed or setting; delete it, or name another file."
        )
    return packed, header


def check(path: Any, value: Any, rule: schema.Rule, what: str, **sizes: Any) -> None:
    """Hold what a file holds against a rule; ValueError in one sentence that names the file and what is wrong in it."""
    try:
        rule.check(value, what, sizes)
    except schema.Mismatch as problem:
        raise ValueError(
            f"{path} is damaged, or was not written by this version of spectral: {problem}; delete it and run again."
        ) from problem


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
