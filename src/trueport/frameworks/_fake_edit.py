"""Edits of the fake framework: a constant, an attribute or a node of the JSON file is changed; all else stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Arrays, EditDict, Unsupported

Model = dict[str, Any]


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> None:
    """Write a changed copy of the file. Raises Unsupported, with the reason, for what cannot be written."""
    model: Model = json.loads(Path(path).read_text(encoding="utf-8"))
    for edit in edits:
        if edit["kind"] not in KINDS:
            raise Unsupported(f"the fake framework cannot be edited by '{edit['kind']}'")
        KINDS[edit["kind"]](model, edit, arrays)
    Path(out).write_text(json.dumps(model, indent=1), encoding="utf-8")


def constant(array: np.ndarray) -> dict[str, Any]:
    """An array as it stands in the file."""
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tolist()}


def _node(model: Model, edit: EditDict) -> dict[str, Any]:
    found = [node for node in model["nodes"] if node["name"] == edit["node"]]
    if not found:
        raise Unsupported(f"there is no node {edit['node']}")
    node: dict[str, Any] = found[0]
    return node


def _set_parameter(model: Model, edit: EditDict, arrays: Arrays) -> None:
    """Give the constant new values; a reader of its own gets a constant of its own when others read the old one."""
    node, name = _node(model, edit), edit["parameter"]
    if name not in node["inputs"] or name not in model["constants"]:
        raise Unsupported(f"{node['name']} reads no constant {name}")
    old = model["constants"][name]
    new = constant(np.asarray(arrays[edit["array"]]).astype(old["dtype"]))
    if new["shape"] != old["shape"]:
        raise Unsupported(f"{name} has the shape {old['shape']}, not {new['shape']}")
    if sum(name in other["inputs"] for other in model["nodes"]) > 1:
        own = f"{name}.{node['name']}"
        node["inputs"] = [own if item == name else item for item in node["inputs"]]
        name = own
    model["constants"][name] = new


def _set_attribute(model: Model, edit: EditDict, arrays: Arrays) -> None:
    attributes = _node(model, edit).setdefault("attributes", {})
    if edit["value"] is None:
        attributes.pop(edit["attribute"], None)
    else:
        attributes[edit["attribute"]] = edit["value"]


def _remove_node(model: Model, edit: EditDict, arrays: Arrays) -> None:
    node = _node(model, edit)
    inputs: list[str] = node["inputs"]
    data = next((place for place, name in enumerate(inputs) if name not in model["constants"]), 0)
    kept, gone = inputs[edit.get("slot", data)], node["outputs"][0]
    if gone in [item["name"] for item in model["outputs"]]:
        raise Unsupported(f"{node['name']} computes an output of the model, whose name would be lost")
    model["nodes"].remove(node)
    for other in model["nodes"]:
        other["inputs"] = [kept if name == gone else name for name in other["inputs"]]


KINDS: Mapping[str, Callable[[Model, EditDict, Arrays], None]] = {
    "set-parameter": _set_parameter,
    "set-attribute": _set_attribute,
    "remove-node": _remove_node,
}
"""Kind of `EditDict` -> what writes it."""
