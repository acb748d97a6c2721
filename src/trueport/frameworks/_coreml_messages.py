"""What stands in an operation of an ML program: values, names that it reads, inner blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def copied(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def is_constant(operation: Any) -> bool:
    """Whether an operation holds a stored value."""
    return bool(operation.type == "const" or operation.type.startswith("constexpr_"))


def dtype_of(value: Any) -> str:
    if isinstance(value, str):
        return "str"
    kind = np.asarray(value).dtype.kind
    return {"f": "float32", "b": "bool", "U": "str", "O": "str"}.get(kind, "int32")


def every(block: Any) -> Iterable[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from every(inner)


def values(operation: Any) -> list[Any]:
    """Every Value that stands in an operation, inner blocks included."""
    found = [*operation.attributes.values()]
    found += [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
    return found + [value for block in operation.blocks for inner in every(block) for value in values(inner)]


def made_in(block: Any) -> Iterable[str]:
    for operation in every(block):
        yield from (output.name for output in operation.outputs)


def named_in(operation: Any) -> list[str]:
    return [
        binding.name
        for argument in operation.inputs.values()
        for binding in argument.arguments
        if binding.WhichOneof("binding") == "name"
    ]


def reads(operation: Any) -> list[str]:
    """The names of all values that an operation needs, those that its blocks take from outside included."""
    found = named_in(operation)
    for block in operation.blocks:
        own = {item.name for item in block.inputs} | set(made_in(block))
        inside = [name for inner in every(block) for name in named_in(inner)] + list(block.outputs)
        found += [name for name in inside if name not in own]
    return found


def rewire(operation: Any, before: str, after: str) -> None:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name" and binding.name == before:
                binding.name = after
    for block in operation.blocks:
        if before in {item.name for item in block.inputs} | set(made_in(block)):
            continue
        for inner in block.operations:
            rewire(inner, before, after)
        for place, name in enumerate(block.outputs):
            if name == before:
                block.outputs[place] = after
