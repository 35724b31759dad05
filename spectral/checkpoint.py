"""Files that are whole or absent: atomic writes, and arrays with a checksum and without pickles."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

DAMAGE = (  # what numpy, zipfile and zlib raise for a file that is not whole
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, OSError, EOFError, ValueError, TypeError, LookupError,
    ArithmeticError, AttributeError, NotImplementedError, RuntimeError, SyntaxError, MemoryError,
)  # fmt: skip


def atomic_write(path: Any, content: bytes) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Any) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all is written and on disk."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)  # there only if something failed
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Rows:
    """An append-only file of vectors: a save costs what is new. What a crash left behind the last mark is cut off again."""

    def __init__(self, path: Any, mark: tuple[int, str] | None = None) -> None:
        """`mark` as `append` gave it: the file must hold what it held then, ValueError if not; None begins anew."""
        self.path, self.size, self.digest = Path(path), 0, hashlib.sha256()
        self.content = b""
        if mark is None or mark[0] == 0:
            return
        try:
            with open(self.path, "r+b") as file:
                self.content = file.read(mark[0])
                file.truncate(mark[0])
        except FileNotFoundError as problem:
            raise ValueError(
                f"{path} is missing, which belongs to a checkpoint; delete that and run again."
            ) from problem
        self.digest.update(self.content)
        self.size = len(self.content)
        if (self.size, self.digest.hexdigest()) != tuple(mark):
            raise ValueError(
                f"{path} is damaged (its checksum does not fit); delete it with its checkpoint and run again."
            )

    def append(self, content: bytes) -> tuple[int, str]:
        """Write behind what is there; returns the mark (bytes, SHA-256) of all so far."""
        if content:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                file.seek(self.size)  # behind the last mark, whatever an interrupted append has left there
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            digest = self.digest.copy()
            digest.update(content)
            self.size, self.digest = self.size + len(content), digest  # both or, where a signal comes, none
        return self.size, self.digest.hexdigest()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def fingerprint(description: Any) -> str:
    """A short hash of plain JSON data: equal descriptions, equal fingerprints."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_arrays(path: Any, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """One .npz of arrays and a JSON header, with a SHA-256 over both, written atomically."""
    packed = {name: np.asarray(array) for name, array in arrays.items()}
    text = json.dumps(header, sort_keys=True)
    packed["header"] = np.frombuffer(text.encode(), dtype=np.uint8)
    packed["checksum"] = np.frombuffer(bytes.fromhex(_checksum(packed)), dtype=np.uint8)
    with whole_file(path) as file:
        np.savez(file, **packed)  # type: ignore[arg-type]


def load_arrays(path: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, header) of what `save_arrays` wrote; ValueError with one sentence if the file is damaged or foreign."""
    try:
        with np.load(path, allow_pickle=False) as file:
            packed = {name: file[name] for name in file.files}
        stored = packed.pop("checksum").tobytes().hex()
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except DAMAGE as problem:
        raise ValueError(f"{path} is damaged or was not written by spectral; delete it and run again.") from problem
    if stored != _checksum(packed):
        raise ValueError(f"{path} is damaged (its checksum does not fit); delete it and run again.")
    header = json.loads(packed.pop("header").tobytes())
    return packed, header


def load_own(path: Any, form: str, identity: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """`load_arrays` of a checkpoint of this format and identity; ValueError for any other."""
    packed, header = load_arrays(path)
    if header.get("format") != form or header.get("identity") != identity:
        raise ValueError(
            f"the checkpoint {path} is of another operator, seed or setting; delete it, or name another file."
        )
    return packed, header


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
