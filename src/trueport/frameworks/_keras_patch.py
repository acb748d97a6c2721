"""Writes the edits of single layers into a Keras configuration: parameters, attributes, operators. Runs in a worker.

A layer that is called several times is one layer:
an edit of its first call changes all of them, an edit of a later call (`name@1`) gives that call a layer of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _keras_words as words
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._keras_edit import Editor
from trueport.frameworks._keras_operators import Asked, front_pads, pieces
from trueport.frameworks._keras_wiring import OPERATIONS, Found, Level, Piece, Tensor, Wiring

MERGING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot")
WINDOWS = {"Conv": "Conv", "MaxPool": "MaxPool", "AveragePool": "AveragePool", "ConvTranspose": ""}


class Patch:
    """One file while its edits are applied."""

    def __init__(self, path: str, arrays: Arrays, *, trust: bool) -> None:
        self.editor = Editor(path, trust=trust)
        self.wiring = Wiring(self.editor)
        self.arrays = arrays

    def array(self, key: str) -> np.ndarray:
        """An array that came with the edits. Raises Unsupported when it did not."""
        if key not in self.arrays:
            raise Unsupported(f"no array '{key}' came with the edits")
        return np.asarray(self.arrays[key])

    def asked(self, operator: str, attributes: Mapping[str, Any], constants: Sequence[str], **more: Any) -> list[Piece]:
        """The layers for an operator with these constants."""
        held = [self.array(key) for key in constants]
        plain = not self.editor.archive and not self.editor.legacy
        made = pieces(Asked(operator, attributes, held, legacy=self.editor.legacy, layers_only=plain, **more))
        if plain and any(".ops." in piece.module for piece in made):
            raise Unsupported(
                f"an .h5 file holds no operation of keras.ops, which {operator} needs; save it as .keras first"
            )
        return made

    def like(self, level: Level, tensor: Tensor) -> Any:
        """The dtype policy of the layer that makes a tensor; None for an input."""
        whole = level.layer(tensor[0])
        return None if whole is None or whole["class_name"] == "InputLayer" else whole["config"].get("dtype")

    def shape(self, level: Level, tensor: Tensor) -> Any:
        """Shape of a tensor as the model was loaded, None for one that an edit made."""
        try:
            layer = level.model.get_layer(tensor[0])
            node = layer._inbound_nodes[tensor[1]]
            made = node.outputs if isinstance(node.outputs, (list, tuple)) else [node.outputs]
            return [None if size is None else int(size) for size in made[tensor[2]].shape]
        except (ValueError, AttributeError, IndexError, TypeError):
            return None

    # -- single layers ------------------------------------------------------------------------------------------

    def own(self, node: str, *, always: bool = False) -> Found:
        """The layer of a node; a later call of a shared layer (with `always`: every one) gets a layer of its own."""
        found = self.wiring.find(node)
        calls = len(found.whole.get("inbound_nodes") or [])
        if found.wrapped or calls < 2:
            return found
        later = node.rpartition("@")[2].isdigit() and found.path != self.wiring.renamed.get(node, node)
        if always or later:
            return self.split(found, node)
        self.editor.notes.append(f"'{found.path}' is one layer that is called {calls} times; all calls changed")
        return found

    def split(self, found: Found, node: str) -> Found:
        """Give one call of a shared layer a layer of its own, with the same weights."""
        level, old = found.level, found.name
        shown = found.path
        order = level.calls(old) if len(level.calls(old)) > 1 else list(range(len(found.whole["inbound_nodes"])))
        name = level.fresh(f"{old}_call{order.index(found.call)}")
        inbound = found.whole["inbound_nodes"][found.call]

        def moved(tensor: Tensor) -> Tensor:
            if tensor[0] != old or tensor[1] < found.call:
                return tensor
            return (name, 0, tensor[2]) if tensor[1] == found.call else (old, tensor[1] - 1, tensor[2])

        clone = {**words.copied(found.whole), "name": name, "inbound_nodes": [inbound]}
        clone["config"]["name"] = name
        del found.whole["inbound_nodes"][found.call]
        level.layers.insert(level.layers.index(found.whole) + 1, clone)
        for whole in level.layers:
            whole["inbound_nodes"] = level.mapped(whole["inbound_nodes"], moved)
        level.config["output_layers"] = level.mapped(level.config["output_layers"], moved)
        for (path, index), weight in list(self.editor.places.items()):
            if path == shown or path.startswith(f"{shown}/"):
                self.editor.places[(f"{level.prefix}{name}{path[len(shown) :]}", index)] = weight
        names = [shown if i == 0 else f"{shown}@{i}" for i in range(len(order))]
        left = [one for i, one in enumerate(names) if i != order.index(found.call)]
        self.wiring.renamed.update({one: (shown if i == 0 else f"{shown}@{i}") for i, one in enumerate(left)})
        self.wiring.renamed[names[order.index(found.call)]] = f"{level.prefix}{name}"
        self.editor.notes.append(f"call '{node}' of a shared layer is a layer of its own now, named '{name}'")
        return Found(level, clone, f"{level.prefix}{name}", 0)

    def reads(self, found: Found) -> list[Tensor]:
        """What a node reads; nothing for one inside another layer, or in a model whose graph is not known."""
        if found.wrapped:
            return []
        with contextlib.suppress(Unsupported):
            self.wiring.functional(found.level)
        return found.level.operands(found.whole, found.call)

    def held(self, found: Found) -> dict[tuple[str, int], str]:
        """Where a layer has its weights, those inside it too: place -> name of the array."""
        inside = f"{found.path}/"
        places = self.editor.places
        return {p: places[p] for p in sorted(places) if p[0] == found.path or p[0].startswith(inside)}

    def replace(self, found: Found, made: Sequence[Piece], tensors: Sequence[Tensor]) -> None:
        """Put other layers at a layer's place; the last one keeps its name and its readers."""
        level, last = found.level, made[-1]
        for place in self.held(found):
            self.editor.forget(place[0])
        dtype = found.config.get("dtype")
        if len(made) > 1 or last.module != "keras.layers" or last.kind in OPERATIONS:
            if found.wrapped:
                raise Unsupported(f"'{found.path}' is inside another layer, where only one stock layer can stand")
            self.wiring.functional(level)
        current = list(tensors)
        if len(made) > 1 or (not current and not found.wrapped and level.whole["class_name"] != "Sequential"):
            self.wiring.functional(level)
            current = current or level.operands(found.whole, found.call)
        for piece in made[:-1]:
            name = level.fresh(f"{found.name}_{piece.kind.lower()}")
            current = [level.add(self.editor, name, piece, current, dtype)]
        common = {key: found.config[key] for key in ("name", "trainable", "dtype") if key in found.config}
        found.whole["class_name"] = last.kind
        found.whole["registered_name"] = None
        found.whole["module"] = last.module
        found.whole["config"] = {
            **(common if last.module == "keras.layers" else {"name": common["name"]}),
            **last.config,
        }
        if found.whole.get("inbound_nodes"):
            found.whole["inbound_nodes"][found.call] = level.inbound(last, current)
        self.editor.put(found.path, list(last.arrays))


def set_parameter(patch: Patch, edit: EditDict) -> None:
    """Give a layer another weight."""
    found, name, array = patch.own(edit["node"]), edit["parameter"], patch.array(edit["array"])
    editor, held = patch.editor, patch.held(found)
    place = next((place for place, one in held.items() if one == name), None)
    if place is None and edit["node"] != found.path:  # the call's own layer may name it after itself
        place = next((p for p, one in held.items() if one.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]), None)
    if place is None:
        known = ", ".join(held.values()) or "none"
        raise Unsupported(f"'{edit['node']}' has no parameter '{name}'; it has {known}")
    _put(editor, place, array)
    if place[0] == found.path:
        _fit(found, place[1], array)


def _put(editor: Editor, place: tuple[str, int], array: np.ndarray) -> None:
    """Put an array at a place, under its name where no other place has that."""
    name = editor.places[place]
    old = editor.arrays[name]
    if sum(one == name for one in editor.places.values()) > 1:
        name = f"{place[0]}/{place[1]}*"
        editor.places[place] = name
    editor.arrays[name] = np.asarray(array).astype(old.dtype)


def _fit(found: Found, index: int, array: np.ndarray) -> None:
    """Let the hyperparameters of a layer say the shape of its kernel."""
    config, kind, shape = found.config, str(found.whole["class_name"]), [int(size) for size in array.shape]
    if index:
        return
    if kind == "Dense" and len(shape) == 2:
        config["units"] = shape[1]
    elif kind == "Embedding" and len(shape) == 2:
        config["input_dim"], config["output_dim"] = shape
    elif kind in ("Conv1D", "Conv2D", "Conv3D") and len(shape) > 2:
        config["kernel_size"], config["filters"] = shape[:-2], shape[-1]
    elif kind in ("DepthwiseConv1D", "DepthwiseConv2D") and len(shape) > 2:
        config["kernel_size"], config["depth_multiplier"] = shape[:-2], shape[-1]


def add_parameter(patch: Patch, edit: EditDict) -> None:
    """Give a layer without one a bias."""
    found, role = patch.own(edit["node"]), edit["role"]
    if role != "bias" or "use_bias" not in found.config:
        raise Unsupported(f"a {found.whole['class_name']} layer takes no '{role}'")
    if found.config["use_bias"]:
        raise Unsupported(f"'{edit['node']}' has a bias; set that parameter")
    places = list(patch.held(found))
    if not places:
        raise Unsupported(f"'{edit['node']}' has no kernel that a bias could stand beside")
    found.config["use_bias"] = True
    path, last = places[-1]
    name = f"{path}/bias"
    while name in patch.editor.arrays:
        name += "_"
    like = patch.editor.arrays[patch.editor.places[(path, last)]]
    patch.editor.arrays[name] = patch.array(edit["array"]).astype(like.dtype)
    patch.editor.places[(path, last + 1)] = name


def set_attribute(patch: Patch, edit: EditDict) -> None:
    """Set a hyperparameter by the name that `graph` shows, or by Keras's own."""
    found, attribute, value = patch.own(edit["node"]), edit["attribute"], edit.get("value")
    whole, legacy = found.whole, patch.editor.legacy
    operator, shown = words.described(whole, legacy=legacy)
    window = isinstance(found.config.get("padding"), str)
    if attribute == "pads" and window:
        return _set_pads(patch, found, operator, [int(size) for size in value or []])
    if attribute == "auto_pad" and value in ("NOTSET", None) and window:
        if found.config["padding"] != "valid":
            found.config["padding"] = "valid"
        return None
    if attribute in ("use_bias", "reset_after", "linear_before_reset"):
        _set_bias(patch, found, attribute, value)
    if words.set_hyperparameter(whole, attribute, value, legacy=legacy):
        return None
    if operator in FREE:
        changed = {**shown, attribute: value}
        if value is None:
            del changed[attribute]
        new = "Clip" if operator == "Relu" and attribute in ("min", "max") else operator
        new = "LeakyRelu" if operator == "Relu" and attribute == "alpha" else new
        if new == "Clip":
            changed = {"min": 0.0 if operator == "Relu" else None, **changed}
        tensors = patch.reads(found)
        made = patch.asked(new, changed, [], shape=_shape_of_data(patch, found, tensors))
        patch.replace(found, made, tensors)
        return None
    raise Unsupported(f"a {whole['class_name']} layer of Keras has nothing that says {attribute}={value!r}")


FREE = ("Relu", "LeakyRelu", "Elu", "Clip", "Softmax", "LogSoftmax", "HardSigmoid", "Gelu", "ThresholdedRelu", "Resize")
"""Operators without weights whose layer is replaced when its hyperparameters cannot say an attribute."""


def _shape_of_data(patch: Patch, found: Found, tensors: Sequence[Tensor]) -> Any:
    return patch.shape(found.level, tensors[0]) if tensors else None


def _set_bias(patch: Patch, found: Found, attribute: str, value: Any) -> None:
    """Let the biases fit a hyperparameter that is about to change."""
    editor, key = patch.editor, "use_bias" if attribute == "use_bias" else "reset_after"
    if key not in found.config or bool(found.config[key]) == bool(value):
        return
    biases = [place for place, name in patch.held(found).items() if name.rsplit("/", 1)[-1].startswith("bias")]
    if key == "use_bias" and value:
        raise Unsupported("a bias is added with its values: use add-parameter")
    for place in biases:
        old = editor.arrays[editor.places[place]]
        if key == "use_bias":
            del editor.places[place]
        else:
            _put(editor, place, np.stack([old, np.zeros_like(old)]) if value else old.sum(axis=0))
    if key == "reset_after" and not value and biases:
        editor.notes.append(f"the two biases of '{found.path}' were added up, as a GRU with reset before has one")


def _set_pads(patch: Patch, found: Found, operator: str, pads: Sequence[int]) -> None:
    """Explicit pads of a window: 'valid', 'same' where that is the same, else a layer in front."""
    kind = WINDOWS.get(operator, "")
    if not kind or found.wrapped:
        raise Unsupported(f"a {found.whole['class_name']} layer of Keras takes no explicit pads at this place")
    config = found.config
    config["padding"] = "valid"
    if not any(pads):
        return
    sizes = np.ravel(config.get("kernel_size") or config["pool_size"])
    spread = np.ravel(config.get("dilation_rate", 1)) * (sizes - 1)
    steps = np.ravel(config.get("strides") or config["pool_size"])
    half = len(pads) // 2
    if len(pads) != 2 * len(sizes):
        raise Unsupported(f"'{found.path}' takes {2 * len(sizes)} pads, not {len(pads)}")
    same = np.array_equal(pads[:half], spread // 2) and np.array_equal(pads[half:], spread - spread // 2)
    if same and np.all(steps == 1) and operator != "AveragePool":
        config["padding"] = "same"
        return
    patch.wiring.functional(found.level)
    tensor = found.level.operands(found.whole, found.call)[0]
    piece = front_pads(
        Asked(kind, {"count_include_pad": 1}, legacy=patch.editor.legacy), pads, maximum=kind == "MaxPool"
    )
    name = found.level.fresh(f"{found.name}_pad")
    made = found.level.add(patch.editor, name, piece, [tensor], found.config.get("dtype"))
    found.level.put_operands(found.whole, found.call, [made])


def set_operator(patch: Patch, edit: EditDict) -> None:
    """Put another operator at a layer's place."""
    found = patch.own(edit["node"], always=True)
    tensors = patch.reads(found)
    attributes = dict(edit.get("attributes") or {})
    if edit["operator"].startswith("Global") and "keepdims" not in attributes:
        attributes["keepdims"] = bool(found.config.get("keepdims", False))
    made = patch.asked(edit["operator"], attributes, edit.get("constants") or [], values=max(1, len(tensors)),
                       shape=_shape_of_data(patch, found, tensors))  # fmt: skip
    patch.replace(found, made, tensors)


def set_precision(patch: Patch, edit: EditDict) -> None:
    """Let a layer compute and keep its weights in another dtype."""
    found = patch.own(edit["node"], always=True)
    if "dtype" not in found.config:
        raise Unsupported(f"'{edit['node']}' has no dtype of its own")
    found.config["dtype"] = edit["dtype"]
    held = patch.held(found)
    for name, key in (edit.get("parameters") or {}).items():
        place = next((place for place, one in held.items() if one == name), None)
        if place is None:
            raise Unsupported(
                f"'{edit['node']}' has no parameter '{name}'; it has {', '.join(held.values()) or 'none'}"
            )
        patch.editor.arrays[f"{name}*"] = patch.array(key)
        patch.editor.places[place] = f"{name}*"
