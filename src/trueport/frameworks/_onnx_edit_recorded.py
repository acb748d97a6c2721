"""What an ONNX file records about its values' types and shapes, brought up to date behind a change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Callable

UNKNOWN = "unk__"
"""Before the names that inference invents for sizes that it does not know."""


def types(graph: Any) -> dict[str, Any]:
    """Value -> the TypeProto that the file records."""
    return {item.name: item.type for item in [*graph.value_info, *graph.input, *graph.output]}


def refresh(graph: Any, stale: Collection[str], infer: Callable[[], Mapping[str, Any]], *, freed: bool) -> None:
    """Update records of `stale` values to what `infer` says; what it cannot tell is dropped, except for outputs.

    freed: sizes were opened, so a size that cannot be inferred is open too.
    """
    known = {name for node in graph.node for name in node.output}
    known |= {item.name for item in [*graph.input, *graph.initializer]}
    outputs = [item for item in graph.output if item.name in stale]
    behind = {item.name for item in graph.value_info if item.name in stale}
    inferred = infer() if behind or outputs else {}
    for item in outputs:
        if item.name in inferred:
            _update(item, inferred[item.name], freed=freed)
    for place in range(len(graph.value_info) - 1, -1, -1):
        item = graph.value_info[place]
        found = inferred.get(item.name)
        if item.name not in known:
            del graph.value_info[place]
        elif (
            item.name in behind and found is not None and (not _is_tensor(found) or found.tensor_type.HasField("shape"))
        ):
            _update(item, found, freed=freed)
        elif item.name in behind:
            del graph.value_info[place]


def _is_tensor(kind: Any) -> bool:
    return bool(kind.HasField("tensor_type"))


def _update(item: Any, found: Any, *, freed: bool) -> None:
    """Bring one recorded type up to date; sizes that inference leaves open stay as recorded, unless sizes were freed."""
    if not _is_tensor(item.type) or not _is_tensor(found):
        item.type.CopyFrom(found)
        return
    old, new = item.type.tensor_type, found.tensor_type
    if new.elem_type:
        old.elem_type = new.elem_type
    if not new.HasField("shape"):
        return
    if not old.HasField("shape") or len(old.shape.dim) != len(new.shape.dim):
        old.shape.CopyFrom(new.shape)
        for size in old.shape.dim:
            if size.dim_param.startswith(UNKNOWN):
                size.ClearField("dim_param")
        return
    for before, size in zip(old.shape.dim, new.shape.dim):
        if size.HasField("dim_value"):
            if not before.HasField("dim_value") or before.dim_value != size.dim_value:
                before.dim_value = size.dim_value
        elif size.dim_param and not size.dim_param.startswith(UNKNOWN):
            before.dim_param = size.dim_param
        elif freed and before.HasField("dim_value"):
            before.ClearField("dim_value")
