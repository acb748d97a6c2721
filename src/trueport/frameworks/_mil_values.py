"""How kernels of MIL operators read their arguments: numbers, flags, texts, axes and window settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call


def plain(value: Any) -> Any:
    """A tensor's content as Python numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def number(call: Call, argument: str, default: float) -> float:
    """A floating-point argument."""
    return float(plain(call[argument])) if argument in call else default


def whole(call: Call, argument: str, default: int) -> int:
    """An integer argument; a vector of one element counts as its element."""
    if argument not in call:
        return default
    value = plain(call[argument])
    return int(value[0] if isinstance(value, list) else value)


def flag(call: Call, argument: str, default: bool = False) -> bool:
    """A truth value."""
    return bool(plain(call[argument])) if argument in call else default


def text(call: Call, argument: str, default: str) -> str:
    """A string, as written in the program."""
    value = call.get(argument, default)
    return str(value[0] if isinstance(value, list) else value)


def choice(call: Call, argument: str, default: str, known: Sequence[str]) -> str:
    """A string out of a fixed set. Raises Unsupported for any other."""
    value = text(call, argument, default)
    if value not in known:
        raise Unsupported(
            f"{call.operation.kind} with {argument} '{value}' is not covered; known are {', '.join(known)}"
        )
    return value


def wholes(call: Call, argument: str, default: Sequence[int] = ()) -> list[int]:
    """A vector of integers; a single number counts as a vector of one."""
    if argument not in call:
        return list(default)
    value = plain(call[argument])
    return [int(item) for item in value] if isinstance(value, list) else [int(value)]


def truths(call: Call, argument: str, count: int) -> list[bool]:
    """A vector of truth values, all false where it is absent."""
    if argument not in call or call[argument] is None:
        return [False] * count
    value = plain(call[argument])
    return [bool(item) for item in value] if isinstance(value, list) else [bool(value)]


def axes(call: Call, argument: str, rank: int) -> list[int]:
    """Axes counted from the front, all of them where the argument is absent."""
    if argument not in call or call[argument] is None:
        return list(range(rank))
    return [axis % rank if rank else 0 for axis in wholes(call, argument)]


def along(vector: Any, axis: int, rank: int) -> Any:
    """Shape a vector so that it broadcasts along one axis of a tensor of `rank`; a scalar stays."""
    if vector.dim() == 0 or rank == 0:
        return vector
    return vector.reshape([-1 if place == axis % rank else 1 for place in range(rank)])
