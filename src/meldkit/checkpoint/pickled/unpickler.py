"""What a pickle of `torch.save` describes, without running anything that is in it.

A pickle is a program. Here it may name only what stands in the tables below, and what it names is replaced
by descriptions: tensors and storages become notes about where their bytes lie, everything else is inert.
Python's own interpreter of pickles, the one that is written in Python, is used with fewer instructions:
the one in C sets attributes on whatever it is told to, and takes a few bytes for a request for gigabytes.

Source: `torch._utils`, `torch._tensor` and `torch.serialization` (what tensors are rebuilt from).
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from meldkit.checkpoint.dtypes import BY_TORCH_NAME, DTYPES
from meldkit.checkpoint.json_file import shown

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
#: Nothing can be this large, and products of such numbers are not tried.
_TOO_LARGE = 2**62
#: As in torch.
_MAX_DIMENSIONS = 64


class RefusedError(Exception):
    """The pickle names something that it may not; the text is that name."""


class UnreadableError(Exception):
    """The pickle names a kind of tensors that is not read; the text is that name."""


class MalformedError(Exception):
    """The pickle describes something that cannot be; the text says what."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the file that tensors are views of."""

    key: str
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a view of a storage; offset and strides in elements. It stays within the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from the first one to the last one; 0 if there is none."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class _Named:
    """A type of storage or of elements, by torch's name."""

    name: str


class _Inert:
    """Stands for objects that carry no weights; takes anything and does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


class _Mapping(OrderedDict[Any, Any]):
    """A mapping that is nothing but one."""

    def __init__(self, items: object = (), *_: object) -> None:
        super().__init__()
        pairs = cast("list[Any] | tuple[Any, ...]", items) if isinstance(items, list | tuple) else ()
        for key, value in pairs:
            if not _simple(key):
                raise MalformedError("a key that is not simple")
            self[key] = value


def _rebuild_v2(storage: object, offset: object, shape: object, stride: object, *_: object) -> View:
    if not isinstance(storage, Storage):
        raise MalformedError("a tensor without storage")
    return _view(storage, storage.dtype, offset, shape, stride)


def _rebuild_v3(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> View:
    if not isinstance(storage, Storage) or not isinstance(dtype, _Named) or dtype.name not in BY_TORCH_NAME:
        raise MalformedError("a tensor of unknown type")
    return _view(storage, BY_TORCH_NAME[dtype.name].name, offset, shape, stride)


def _view(storage: Storage, dtype: str, offset: object, shape: object, stride: object) -> View:
    sizes, strides = _naturals(shape), _naturals(stride)
    if type(offset) is not int or not 0 <= offset < _TOO_LARGE or len(sizes) != len(strides):
        raise MalformedError(f"a tensor of shape {shown(shape)} and strides {shown(stride)}")
    view = View(storage, dtype, offset, sizes, strides)
    # Views may repeat elements, so that the shape alone can promise more than there is in the file.
    if math.prod(max(n, 1) for n in sizes) >= _TOO_LARGE:
        raise MalformedError(f"a tensor of shape {shown(sizes)}, more than any file can hold")
    if view.extent and (offset + view.extent) * DTYPES[dtype].itemsize > storage.nbytes:
        raise MalformedError(f"a tensor of shape {shown(sizes)} that reaches beyond its storage")
    return view


def _naturals(value: object) -> tuple[int, ...]:
    numbers = cast("tuple[object, ...]", value) if isinstance(value, tuple | list) else (None,)
    if len(numbers) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < _TOO_LARGE for n in numbers):
        raise MalformedError(f"sizes {shown(cast('object', value))}")
    return cast("tuple[int, ...]", tuple(numbers))


def _parameter(data: object = None, *_: object) -> object:
    return data


def _of_type(function: object, _type: object, arguments: object, *_: object) -> object:
    if function not in _REBUILDERS or not isinstance(arguments, tuple):
        raise MalformedError("a tensor of a class of its own")
    return cast("Callable[..., object]", function)(*cast("tuple[object, ...]", arguments))


def _size(sizes: object = ()) -> object:
    return sizes


def _encode(text: object, encoding: object = "latin1", *_: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise MalformedError("text in an encoding")
    return text.encode("latin1")


_SIMPLE = (str, bytes, int, float, complex, type(None), View, _Named, _Inert)
#: Harmless names of what is not read: sparse and quantised tensors, and types of numbers that are not known.
_OTHER_TENSORS = re.compile(
    r"torch(?:\.storage)?\.(?:\w+Storage|(?:q?u?int|b?float|complex|bits)\w*)|torch\._utils\._rebuild_\w+"
)
_REBUILDERS = (_rebuild_v2, _rebuild_v3, _parameter)
_INERT = {
    "argparse": "Namespace",
    "builtins": "set frozenset bytearray complex slice range list dict tuple int float str bool bytes object "
    "xrange long unicode",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "torch": "Tensor device Generator",
    "torch.nn.parameter": "Parameter Buffer",
    "torch.serialization": "_get_layout",
}

#: What a pickle may name, and what stands for it.
_KNOWN: dict[tuple[str, str], object] = {
    **{(module, name): _Inert for module, names in _INERT.items() for name in names.split()},
    ("collections", "OrderedDict"): _Mapping,
    ("collections", "defaultdict"): _Mapping,
    ("torch._utils", "_rebuild_tensor"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _encode,
    **{("torch", name): _Named(name) for name in (*_STORAGES, *BY_TORCH_NAME)},
    **{("torch.storage", name): _Named(name) for name in ("UntypedStorage", "TypedStorage")},
}


class Unpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Reads one pickle after the other from a file.

    Attributes:
        storages: all that have been named so far, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name.

        Raises:
            RefusedError: the name is not in the table.
            UnreadableError: nor is it, but it is of torch's own tensors.
        """
        known = _KNOWN.get(("builtins" if module == "__builtin__" else module, name))
        if known is None:
            full = f"{module}.{name}"
            raise UnreadableError(full) if _OTHER_TENSORS.fullmatch(full) else RefusedError(full)
        return known

    def persistent_load(self, pid: object) -> Storage:
        """The storage that a pickle refers to."""
        parts = cast("tuple[object, ...]", pid) if isinstance(pid, tuple) else ()
        if len(parts) < 5 or parts[0] != "storage":
            raise MalformedError("a reference to something else than a storage")
        kind, key, numel = parts[1], parts[2], parts[4]
        name = kind.name if isinstance(kind, _Named) else ""
        if name not in _STORAGES or not isinstance(key, str):
            raise MalformedError(f"elements of type {shown(name or kind)}")
        if type(numel) is not int or not 0 <= numel < _TOO_LARGE:
            raise MalformedError(f"a storage of {shown(numel)} elements")
        if len(parts) > 5 and parts[5] is not None:
            raise MalformedError("a storage that is part of another one")
        storage = Storage(key, _STORAGES[name], numel * DTYPES[_STORAGES[name]].itemsize)
        if self.storages.setdefault(key, storage) != storage:
            raise MalformedError(f"two storages with the key {shown(key)}")
        return storage


def _ignore_state(machine: Any) -> None:
    """Attributes are not set on anything."""
    machine.stack.pop()


def _checked(load: Callable[[Any], None], first: int | None = None, step: int = 1) -> Callable[[Any], None]:
    """An instruction that hashes entries `first`, `first + step`, … of the stack, which must be simple."""

    def load_checked(machine: Any) -> None:
        for key in machine.stack[first::step]:
            if not _simple(key):
                raise MalformedError("a key that is not simple")
        load(machine)

    return load_checked


def _simple(key: object) -> bool:
    """Whether a key is soon hashed; a tuple of tuples of tuples may take for ever, or overflow the stack."""
    items = cast("tuple[object, ...]", key) if type(key) is tuple else (key,)
    return all(isinstance(item, _SIMPLE) for item in items)


#: Extension codes stand for names that other programs have registered, buffers lie outside the file, and
#: the memory of an array of bytes is taken before it is known whether the file has that many.
_LEFT_OUT = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BYTEARRAY8),
)
_instructions: dict[int, Callable[[Any], None]] = {
    code: load
    for code, load in pickle._Unpickler.dispatch.items()  # pyright: ignore[reportPrivateUsage]
    if bytes([code]) not in _LEFT_OUT
}
Unpickler.dispatch = {
    **_instructions,
    pickle.BUILD[0]: _ignore_state,
    pickle.SETITEM[0]: _checked(_instructions[pickle.SETITEM[0]], -2, 2),
    pickle.SETITEMS[0]: _checked(_instructions[pickle.SETITEMS[0]], None, 2),
    pickle.DICT[0]: _checked(_instructions[pickle.DICT[0]], None, 2),
    pickle.ADDITEMS[0]: _checked(_instructions[pickle.ADDITEMS[0]]),
    pickle.FROZENSET[0]: _checked(_instructions[pickle.FROZENSET[0]]),
}
