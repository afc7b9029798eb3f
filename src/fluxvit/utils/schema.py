"""Checks the types and ranges of values from files and callers.

A dataclass states the type and the range of each field in its annotations, and calls :func:`check` in
``__post_init__``, so that Python code and files get the same errors. :func:`read` and :func:`convert` turn
JSON into such dataclasses, or into :class:`msgspec.Struct` types where a file differs from the object.

Nothing is coerced silently: ``"4"``, ``4.0`` and ``true`` are not integers. There are three exceptions, which
lose nothing: an integer is accepted as a float and a list as a tuple, and in Python code scalars of NumPy and
PyTorch are accepted as plain numbers.
"""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, inspect

T = TypeVar("T")

_NONSENSE = 1 << 40

MAX_BYTES = 1 << 28
"""Bytes of the largest JSON file that :func:`read` opens."""

Finite = Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
"""A float that is neither NaN nor infinite."""
Positive = Annotated[float, Meta(gt=0, le=1.7e308)]
NotNegative = Annotated[float, Meta(ge=0, le=1.7e308)]
Share = Annotated[float, Meta(ge=0, le=1)]
"""A float from 0 to 1."""
Count = Annotated[int, Meta(ge=1, le=_NONSENSE)]
"""An integer of at least 1, such as a number of frames."""
Natural = Annotated[int, Meta(ge=0, le=_NONSENSE)]
"""An integer of at least 0, such as an index."""
Size = Annotated[int, Meta(ge=1, le=1 << 16)]
"""An integer of at least 1 that memory depends on, such as pixels of a side or the width of a layer."""
Frames = Annotated[int, Meta(ge=1, le=1 << 20)]
"""Frames of a clip."""
Batch = Annotated[int, Meta(ge=1, le=1 << 20)]
"""A number of clips in memory at once."""
Workers = Annotated[int, Meta(ge=0, le=1024)]
"""A number of processes to start; 0 means that this one does the work."""
Rate = Annotated[float, Meta(gt=0, le=1e6)]
"""Frames per second."""
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A seed of random numbers."""
Name = Annotated[str, Meta(min_length=1, max_length=1 << 16)]
"""A string that is not empty."""


def read(path: str | Path, kind: type[T]) -> T:
    """Read a JSON file as a value of a type.

    Args:
        kind: A dataclass, a ``msgspec.Struct``, or any other type that msgspec knows.

    Raises:
        ValueError: The file cannot be read as JSON, or a value has another type or range. The message is one
            line that names the file, the key, the value and what is expected.
    """
    return convert(load(path), kind, str(path))


def load(path: str | Path) -> Any:
    """Read a JSON file as plain values, whose types are not checked.

    Raises:
        ValueError: It is missing, larger than `MAX_BYTES`, not UTF-8, not JSON, nested too deeply, or holds
            NaN, an infinite number, a key twice, or text that is not Unicode.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("it is a folder" if path.is_dir() else "there is no such file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ValueError(f"{path}: cannot be read as JSON ({reason})") from error


def parse(text: str | bytes, *, surrogates: bool = False) -> Any:
    """Read JSON text as plain values.

    Args:
        surrogates: Accept text that is not Unicode, such as the names of some files.

    Raises:
        ValueError: See :func:`load`; the message names no file.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = _DECODER.decode(text)
        if not surrogates and "\\u" in text:  # Half of a surrogate pair can be neither printed nor written.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text; save it as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("it holds an escape that is not a Unicode character") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        # Python's message about integers of more than 4300 digits names a setting of Python.
        reason = "an integer has too many digits" if "integer string conversion" in str(error) else error
        raise ValueError(str(reason)) from None


def convert(value: Any, kind: type[T], where: str = "", key: str = "") -> T:
    """Convert a plain value, such as JSON gives, to a value of a type.

    Args:
        kind: See :func:`read`.
        where: Source of the value, such as a file; errors begin with it.
        key: Path of the value in the source, such as ``model``.

    Raises:
        ValueError: The value, or something in it, has another type or range.
    """
    if is_dataclass(kind) and isinstance(value, Mapping):
        unknown = [str(name) for name in value if name not in {field.name for field in fields(kind)}]
        if unknown:
            hint = _nearest(unknown, [field.name for field in fields(kind)])
            _fail(
                where, f"{key or 'it'} has no setting called {', '.join(map(shown, sorted(unknown)))}{hint}"
            )
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        _fail(where, _explained(str(error), value, kind, key))
    except RecursionError:
        _fail(where, f"{key or 'it'} is nested too deeply")


@contextmanager
def located(where: str, key: str = "") -> Iterator[None]:
    """Begin the message of a ValueError that is raised inside by its source and key."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {key}: {error}" if key else f"{where}: {error}") from error


def check(instance: Any) -> None:
    """Check the fields of a dataclass instance against its annotations, in place; for ``__post_init__``.

    Lists become tuples, and integers floats, where the annotations say so.

    Raises:
        ValueError: A field has another type or range.
    """
    kind: Any = type(instance)
    struct = _struct(kind)
    names = struct.__struct_fields__
    checked = convert({name: plain(getattr(instance, name)) for name in names}, struct)
    for name in names:
        object.__setattr__(instance, name, getattr(checked, name))


def shown(value: Any) -> str:
    """A value for an error message, on one short line."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits.
        return f"a {type(value).__name__} of very large numbers"
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def _struct(kind: type) -> Any:
    """A Struct with the fields of a dataclass; msgspec caches its knowledge of a Struct's types."""
    hints = get_type_hints(kind, include_extras=True)
    return msgspec.defstruct(kind.__name__, [(field.name, hints[field.name]) for field in fields(kind)])


def plain(value: Any) -> Any:
    """A caller's value in the types of JSON: scalars of NumPy and PyTorch as numbers, sequences as lists.

    Objects of other types are not changed.
    """
    for kind in (bool, int, float, str):  # Subclasses, such as NumPy's float64, become the plain type.
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(inner) for inner in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _nearest(names: Sequence[str], known: Sequence[str]) -> str:
    """A hint at the known name that is most like the first of these names; empty if there is none."""
    matches = get_close_matches(min(names)[:100], known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys must differ."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {shown(name)} stands twice")
        values[name] = value
    return values


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_once)


def _fail(where: str, reason: str) -> NoReturn:
    raise ValueError(f"{where}: {reason}" if where else reason) from None


# Messages of msgspec ---------------------------------------------------------------------------------------

_PATH = re.compile(r"(?P<reason>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*)`)?", re.S)
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")


def _explained(message: str, value: Any, kind: Any, key: str) -> str:
    """A message of msgspec, with the value that is wrong and all that is expected of it."""
    match = _PATH.fullmatch(message)
    assert match is not None
    reason, path = match["reason"], match["path"] or ""
    here = f"{key}{path}".lstrip(".")
    missing = re.fullmatch("Object (missing required|contains unknown) field `(.*)`", reason)
    if missing and missing[1] == "missing required":
        return f"{f'{here}.' if here else ''}{missing[2]} is missing"
    if missing:
        return f"{here or 'it'} has no setting called {missing[2]!r}"
    if not reason.startswith(("Expected", "Invalid", "Number", "Integer")):
        return f"{here}: {reason}" if here else reason  # A dataclass's own check.
    node: Any = inspect.type_info(kind)
    for step in _STEP.finditer(path):
        if step["name"] is None and step["index"] is None:
            # msgspec does not tell which entry of a mapping is wrong.
            return f"{here}: {reason[:1].lower()}{reason[1:]}"
        part = step["name"] if step["name"] is not None else int(step["index"])
        value, node = value[part], _inner_type(node, part)
    return f"{here or 'it'} is {shown(value)}, expected {_expected(node, value)}"


def _inner_type(node: Any, part: Any) -> Any:
    """The type of a field, an entry or an item of a type."""
    if isinstance(node, inspect.Metadata):
        return _inner_type(node.type, part)
    if isinstance(node, inspect.UnionType):
        return _inner_type(next(kind for kind in node.types if not isinstance(kind, inspect.NoneType)), part)
    if isinstance(node, inspect.DictType):
        return node.value_type
    if isinstance(node, inspect.TupleType):
        return node.item_types[part]
    if isinstance(node, inspect.NamedTupleType):
        return node.fields[part].type
    if isinstance(part, int):
        return node.item_type
    return next(field.type for field in node.fields if field.encode_name == part)


def _expected(node: Any, value: Any = None) -> str:
    """The values that a type accepts, in words. A bound against nonsense is named if ``value`` exceeds it."""
    if isinstance(node, inspect.Metadata):
        return _expected(node.type, value)
    if isinstance(node, inspect.UnionType):
        # Null is never wrong where it is allowed.
        kinds = [kind for kind in node.types if not isinstance(kind, inspect.NoneType)]
        return " or ".join(_expected(kind, value) for kind in kinds)
    if isinstance(node, (inspect.IntType, inspect.FloatType)):
        name = "an integer" if isinstance(node, inspect.IntType) else "a number"
        low, high = (None if bound is None or abs(bound) > 1e300 else bound for bound in (node.ge, node.le))
        if high is not None and high >= _NONSENSE and not (isinstance(value, int | float) and value > high):
            high = None
        if low is not None and high is not None:
            return f"{name} from {low} to {high}"
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (("of at least", low), ("above", node.gt), ("of at most", high))
            if bound is not None
        ] + ([] if node.lt is None else [f"below {node.lt:g}"])
        plain = "a finite number" if isinstance(node, inspect.FloatType) else name
        return f"{name} {' and '.join(bounds)}" if bounds else plain
    if isinstance(node, inspect.TupleType):
        return f"a list of {len(node.item_types)}, each {_expected(node.item_types[0])}"
    if isinstance(node, inspect.NamedTupleType):
        return f"a list of {', '.join(field.name for field in node.fields)}"
    if isinstance(node, (inspect.ListType, inspect.VarTupleType)):
        low, high = node.min_length or 0, node.max_length
        size = f" of {low} to {high}" if high is not None else f" of at least {low}" if low else ""
        return f"a list{size}, each {_expected(node.item_type)}"
    if isinstance(node, inspect.LiteralType):
        return f"one of {', '.join(map(repr, node.values))}"
    if isinstance(node, inspect.StrType):
        if node.pattern is not None:
            return f"text of the form {node.pattern}"
        limit = "" if node.max_length is None else f" of at most {node.max_length} characters"
        return f"{'text that is not empty' if node.min_length else 'text'}{limit}"
    if isinstance(node, inspect.BoolType):
        return "true or false"
    if isinstance(node, inspect.NoneType):
        return "null"
    if isinstance(node, inspect.DictType) and node.min_length:
        return "an object that is not empty"
    return "an object"
