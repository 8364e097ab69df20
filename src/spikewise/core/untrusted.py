"""Read untrusted files safely: no pickles, no code, no more memory than the size of the file justifies.

The sizes in a header are compared with the size of the file before memory is allocated; an archive must not
expand out of proportion. Any error of another library's reader on damaged bytes becomes the error that the
caller chooses.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from spikewise.core.errors import SpikewiseError

MOST_EXPANSION = 200
"""Largest ratio of unpacked to packed size; recordings compress by less than ten. Chosen by hand."""
SMALL_BYTES = 2**26
"""Unpacked sizes up to this are allowed at any ratio; chosen by hand."""
MOST_NESTING = 50
"""Deepest nesting of lists, dictionaries and arrays; chosen by hand."""
_MATLAB_HEADER = 128
"""Bytes of the header of a MATLAB file of level 5; the numbers below are its types of elements and classes of
arrays (MathWorks, MAT-File Format)."""
_MATLAB_FLAGS, _MATLAB_ARRAY, _MATLAB_COMPRESSED = 6, 14, 15
_MATLAB_KINDS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 15, 16, 17, 18}
_MATLAB_CLASSES = range(1, 18)
"""From cell arrays (1) to the class that SciPy calls opaque (17)."""


@contextmanager
def parsing(refuse: Callable[[str], SpikewiseError]) -> Iterator[None]:
    """Turn any error of a parser into the error that `refuse` returns for its reason."""
    try:
        yield
    except SpikewiseError:
        raise
    except MemoryError as error:
        raise refuse("it asks for more memory than there is") from error
    except RecursionError as error:
        raise refuse("its values are nested too deeply") from error
    except Exception as error:  # a parser may raise any error on damaged bytes
        reason = (str(error).strip() or "no message").split("\n")[0][:300]
        raise refuse(f"{type(error).__name__}: {reason}") from error


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raise ValueError or OSError if it is none."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError if it is none or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def load_npy(path: Path, mmap_mode: Any = None) -> np.ndarray:
    """Return the array of a .npy file; raise ValueError if its header claims more bytes than it has.

    Parameters
    ----------
    path : Path
    mmap_mode : {None, "r"}
        Whether the array stays on disk.
    """
    with path.open("rb") as file:
        _check_header(file, path.stat().st_size, path.name)
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file; raise ValueError if a header claims more bytes than there are."""
    check_npz(path)
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def check_npz(path: Path) -> None:
    """Raise ValueError if an array of a .npz file claims more bytes than it has, before unpacking any."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_expansion(sum(member.file_size for member in members), path)
        for member in members:
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    _check_header(file, member.file_size, member.filename)


def check_expansion(num_bytes: int, path: Path) -> None:
    """Raise ValueError if `num_bytes`, the unpacked size of a file, is out of proportion to the file."""
    size = path.stat().st_size
    if num_bytes > max(SMALL_BYTES, MOST_EXPANSION * size):
        raise ValueError(f"its {size} bytes claim to unpack to {num_bytes}")


def check_hdf5(item: h5py.Dataset) -> None:
    """Raise ValueError if a dataset claims more bytes than its file can contain."""
    if item.dtype.kind not in "O":
        check_expansion(math.prod(item.shape or ()) * item.dtype.itemsize, Path(item.file.filename))


def check_nesting(value: Any, name: str) -> None:
    """Raise ValueError if lists and dictionaries are nested so deeply that copying them would fail."""
    level = [value]
    for _ in range(MOST_NESTING):
        level = [
            item
            for one in level
            if isinstance(one, dict | list | tuple)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(f"{name} is nested too deeply")


def check_matlab(path: Path) -> None:
    """Raise ValueError unless an older MATLAB file (level 5) consists of complete elements of known types.

    SciPy looks up the type of an element in a table without a bounds check, and crashes.
    Source: MathWorks, MAT-File Format.
    """
    content = path.read_bytes()
    if len(content) < _MATLAB_HEADER or 0 in content[:4]:  # level 4, which SciPy reads in plain Python
        return
    order = ">" if content[126:128] == b"MI" else "<"
    for kind, part in _matlab_elements(memoryview(content)[_MATLAB_HEADER:], order):
        if kind == _MATLAB_COMPRESSED:
            most = max(SMALL_BYTES, MOST_EXPANSION * len(content))
            unpacked = zlib.decompressobj().decompress(part, most + 1)
            check_expansion(len(unpacked), path)
            for inner_kind, inner in _matlab_elements(memoryview(unpacked), order):
                _check_matlab_array(inner_kind, inner, order, 0)
        else:
            _check_matlab_array(kind, part, order, 0)


def _matlab_elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the bytes of each element; raise if bytes are missing."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:  # a small element: the upper half is its size, at most four bytes follow
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start, end = at + 8, at + 8 + size
            end += 0 if kind == _MATLAB_COMPRESSED else -size % 8
        if kind not in _MATLAB_KINDS or start + size > min(end, len(content)):
            raise ValueError(f"it has an element of type {kind} with {size} bytes")
        yield kind, content[start : start + size]
        at = end


def _check_matlab_array(kind: int, content: memoryview, order: str, depth: int) -> None:
    """Check the elements of an array, and of the arrays in it recursively."""
    if kind != _MATLAB_ARRAY or depth > MOST_NESTING:
        raise ValueError(f"it has an element of type {kind} in the place of an array, at depth {depth}")
    elements = list(_matlab_elements(content, order))
    if not elements:  # an empty cell
        return
    flags_kind, flags = elements[0]
    if flags_kind != _MATLAB_FLAGS or len(flags) != 8:
        raise ValueError("it has an array without flags")
    array_class = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    if array_class not in _MATLAB_CLASSES:
        raise ValueError(f"it has an array of the unknown class {array_class}")
    for inner_kind, inner in elements[1:]:
        if inner_kind == _MATLAB_ARRAY:
            _check_matlab_array(inner_kind, inner, order, depth + 1)


def safe_name(name: str) -> str:
    """Return a name that is safe as a file name: it cannot point to another folder."""
    plain = re.sub(r"[^\w.\- ]", "_", name)[:100].strip(" .")
    if plain and plain == name:
        return plain
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _check_header(file: IO[bytes], num_bytes: int, name: str) -> None:
    """Raise ValueError if the header of an array claims more than `num_bytes` bytes, or Python objects."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise ValueError(f"{name} has the shape {shape}")
    needed = math.prod(shape) * dtype.itemsize
    if dtype.itemsize == 0 or needed > num_bytes:
        raise ValueError(f"{name} claims {needed} bytes of numbers and has {num_bytes}")
