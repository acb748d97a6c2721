"""Decides where a named node stands in a Keras configuration, what it reads, and how layers come between. In a worker.

A level is the graph of one Functional model: the whole one or a nested one. A tensor is (layer, call, output): of a
layer of that level, the call's number in the configuration, and which of its outputs. Sequential models are rewritten
as Functional ones before anything is wired, and turned back when they are still a chain at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._keras_edit import Editor

Tensor = tuple[str, int, int]
OPERATIONS = ("TFOpLambda", "SlicingOpLambda")
"""Layers of Keras 2 that call a TensorFlow function; they stand in graphs alone."""


class Operand(NamedTuple):
    """The place of an operand among a layer's arguments."""

    number: int


class Piece(NamedTuple):
    """One layer to be made. `args`: JSON values and Operands, as Keras 3 calls it; `keywords`: the same by name.

    Keras 3 offers its operations as layers too (`module` says where it lives), Keras 2 those of TensorFlow (TFOpLambda).
    """

    kind: str
    config: dict[str, Any]
    module: str = "keras.layers"
    arrays: tuple[np.ndarray, ...] = ()
    args: tuple[Any, ...] = (Operand(0),)
    keywords: dict[str, Any] = {}  # noqa: RUF012 -- never written into


class Found(NamedTuple):
    """A node in the configuration. `call`: its number there; `wrapped`: the layer that holds it, where one does."""

    level: Level
    whole: dict[str, Any]
    path: str
    call: int
    wrapped: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Its hyperparameters."""
        found: dict[str, Any] = self.whole["config"]
        return found

    @property
    def name(self) -> str:
        """Its name in its level."""
        return str(self.whole["config"]["name"])


class Level:
    """One Functional (or Sequential) model inside the configuration; `whole` is its entry, `model` as it was loaded."""

    def __init__(self, whole: dict[str, Any], prefix: str, model: Any, *, legacy: bool) -> None:
        self.whole, self.prefix, self.model, self.legacy = whole, prefix, model, legacy

    @property
    def config(self) -> dict[str, Any]:
        """Name, layers, inputs and outputs."""
        found: dict[str, Any] = self.whole["config"]
        return found

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The entries of its layers."""
        found: list[dict[str, Any]] = self.config["layers"]
        return found

    def layer(self, name: str) -> dict[str, Any] | None:
        """The entry of this layer, or None."""
        return next((whole for whole in self.layers if whole["config"]["name"] == name), None)

    def calls(self, name: str) -> list[int]:
        """Numbers of a layer's calls in the configuration, in the order in which they are executed."""
        inner = getattr(self.model, "_functional", None) or self.model
        depths = getattr(inner, "_nodes_by_depth", None) or {}
        ran = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
        own = [node for node in ran if _layer_of(node) is not None and _layer_of(node).name == name]
        if not own:
            return [0]
        held = [node for node in _layer_of(own[0])._inbound_nodes if any(node is one for one in own)]
        return [next(i for i, node in enumerate(held) if node is one) for one in own]

    def first(self, name: str) -> int:
        """Number of a layer's first call in the configuration: Keras 2 counts the making of a nested model as one."""
        whole = self.layer(name) if self.legacy else None
        inner = (whole or {}).get("config", {}).get("layers")
        return int(bool(inner) and inner[0]["class_name"] == "InputLayer")

    def written(self, tensor: Tensor) -> list[Any]:
        """A tensor as the configuration has it."""
        return [tensor[0], tensor[1] + self.first(tensor[0]), tensor[2]]

    # -- tensors ------------------------------------------------------------------------------------------------

    def mapped(self, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """A part of the configuration with every tensor in it changed."""
        if isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                new = change(tuple(value["config"]["keras_history"]))
                return {**value, "config": {**value["config"], "keras_history": list(new)}}
            return {key: self.mapped(item, change) for key, item in value.items()}
        if isinstance(value, list):
            if _is_tensor(value) and self.layer(value[0]) is not None:
                raw = self.written(change((value[0], value[1] - self.first(value[0]), value[2])))
                return [*raw, *(self.mapped(item, change) for item in value[3:])]
            return [self.mapped(item, change) for item in value]
        return value

    def read(self, value: Any) -> list[Tensor]:
        """The tensors in a part of the configuration, in order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(value, note)
        return found

    def operands(self, whole: dict[str, Any], call: int) -> list[Tensor]:
        """What a call of a layer reads."""
        inbound = whole.get("inbound_nodes") or []
        return self.read(inbound[call]) if call < len(inbound) else []

    def put_operands(self, whole: dict[str, Any], call: int, tensors: Sequence[Tensor]) -> None:
        """Let a call read other tensors, as many as before."""
        left = list(tensors)
        whole["inbound_nodes"][call] = self.mapped(whole["inbound_nodes"][call], lambda old: left.pop(0))

    def redirect(self, old: Tensor, new: Tensor, skip: Sequence[str] = ()) -> None:
        """Let all that reads one tensor, the level's outputs too, read another; layers in `skip` stay."""
        for whole in self.layers:
            if whole["config"]["name"] not in skip:
                whole["inbound_nodes"] = self.mapped(whole["inbound_nodes"], lambda t: new if t == old else t)
        if old in self.outputs():
            self.config["output_layers"] = self.mapped(self.config["output_layers"], lambda t: new if t == old else t)

    def outputs(self) -> list[Tensor]:
        """What the level gives."""
        return self.read(self.config["output_layers"])

    def named(self, side: str, names: Sequence[str]) -> dict[str, Tensor]:
        """The model's own name -> tensor of its inputs ("input_layers") or outputs ("output_layers")."""
        held = self.config[side]
        if isinstance(held, dict):
            return {name: self.read(item)[0] for name, item in held.items()}
        return dict(zip(names, self.read(held)))

    def readers(self, tensor: Tensor) -> list[tuple[dict[str, Any], int]]:
        """(layer, call) that read a tensor."""
        return [
            (whole, call)
            for whole in self.layers
            for call in range(len(whole.get("inbound_nodes") or []))
            if tensor in self.operands(whole, call)
        ]

    # -- layers -------------------------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        """A name that no layer has."""
        base, count = name.replace("/", "_"), 0
        name = base
        while self.layer(name) is not None:
            count += 1
            name = f"{base}_{count}"
        return name

    def add(self, editor: Editor, name: str, piece: Piece, tensors: Sequence[Tensor], like: Any = None) -> Tensor:
        """Make a layer that reads these tensors; returns what it gives. `like`: the dtype policy to take over."""
        config = {"name": name, **_common(piece, like), **piece.config}
        whole = {
            "module": piece.module,
            "class_name": piece.kind,
            "config": config,
            "registered_name": None,
            "name": name,
            "inbound_nodes": [self.inbound(piece, tensors)],
        }
        names = [tensor[0] for tensor in tensors]
        place = max((i for i, one in enumerate(self.layers) if one["config"]["name"] in names), default=-1)
        self.layers.insert(place + 1, whole)
        editor.put(f"{self.prefix}{name}", list(piece.arrays))
        return (name, 0, 0)

    def inbound(self, piece: Piece, tensors: Sequence[Tensor]) -> Any:
        """One call as the configuration has it."""
        if not self.legacy:
            return {
                "args": [_filled(item, tensors) for item in piece.args],
                "kwargs": {key: _filled(item, tensors) for key, item in piece.keywords.items()},
            }
        flat = _flat(piece.args)
        raw = [self.written(tensor) for tensor in tensors]
        words = {key: raw[item.number] if isinstance(item, Operand) else item for key, item in piece.keywords.items()}
        call: list[Any] = [[*raw[one.number], words if i == 0 else {}] for i, one in enumerate(flat)]
        return call[0] if piece.kind in OPERATIONS else call  # an operation gets what is written, a layer its one item

    def functional(self) -> None:
        """Rewrite a Sequential model as the graph that it is. Raises Unsupported when it has no fixed input."""
        if self.whole["class_name"] != "Sequential":
            return
        layers = self.layers
        if not layers or layers[0]["class_name"] != "InputLayer":
            raise Unsupported(
                f"the Sequential model '{self.config['name']}' has no InputLayer, so its layers have no graph"
            )
        before = None
        for whole in layers:
            name = whole["config"]["name"]
            whole["name"] = name
            whole["inbound_nodes"] = [] if before is None else [self.inbound(Piece("", {}), [(before, 0, 0)])]
            before = name
        first, last = [layers[0]["config"]["name"], 0, 0], self.written((str(before), 0, 0))
        self.whole["class_name"] = "Functional"
        self.whole.pop("build_config", None)
        kept = {key: self.config[key] for key in ("name", "trainable") if key in self.config}
        self.whole["config"] = {
            **({"name": self.config.get("name"), "trainable": True} if not self.legacy else {}),
            **kept,
            "layers": layers,
            "input_layers": [first],
            "output_layers": [last],
        }
        if self.legacy and self.whole.get("keras_version") is None:
            self.whole.pop("module", None)
        self.whole["module"] = "keras.src.models.functional" if not self.legacy else "keras"
        self.whole["registered_name"] = "Functional"

    def chain(self) -> bool:
        """Whether the level could be written as a Sequential model: every layer reads the one before it, once."""
        before: str | None = None
        for whole in self.layers:
            calls = whole.get("inbound_nodes") or []
            reads = [] if before is None else [(before, 0, 0)]
            is_op = whole["class_name"] in OPERATIONS or "keras.src.ops" in str(whole.get("module"))
            if (
                len(calls) != len(reads)
                or is_op
                or [t for c in range(len(calls)) for t in self.operands(whole, c)] != reads
            ):
                return False
            if any(isinstance(call, dict) and call.get("kwargs") for call in calls):
                return False
            before = whole["config"]["name"]
        return self.outputs() == [(before, 0, 0)]


class Wiring:
    """The levels of a configuration, and where nodes stand in them."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.top = Level(editor.configuration, "", editor.loaded.model, legacy=editor.legacy)
        self.renamed: dict[str, str] = {}
        """Node -> its present name, where an edit had to give its name to another."""
        self.sequential: list[tuple[dict[str, Any], dict[str, Any], Level]] = []

    def functional(self, level: Level) -> None:
        """Make a level one that can be wired; remember how it was written."""
        if level.whole["class_name"] == "Sequential":
            before = {key: value for key, value in level.whole.items() if key != "config"}
            config = dict(level.config)
            level.functional()
            self.sequential.append((before, config, level))

    def finish(self) -> None:
        """Write what was a chain and is one as a chain."""
        for before, config, level in self.sequential:
            if not level.chain():
                self.editor.notes.append(f"the Sequential model '{level.config['name']}' became a Functional one")
                continue
            layers = level.layers
            for whole in layers:
                whole.pop("inbound_nodes", None)
                if not self.editor.legacy or "name" not in config["layers"][0]:
                    whole.pop("name", None)
            level.whole.clear()
            level.whole.update({**before, "config": {**config, "layers": layers}})

    def levels(self) -> Iterator[Level]:
        """All levels, outer before inner."""

        def inside(level: Level) -> Iterator[Level]:
            yield level
            for whole in level.layers:
                if "layers" in whole["config"]:
                    yield from inside(self.inner(level, whole))

        yield from inside(self.top)

    def inner(self, level: Level, whole: dict[str, Any]) -> Level:
        """The level that a nested model is."""
        name = whole["config"]["name"]
        try:
            model = level.model.get_layer(name)
        except (ValueError, AttributeError):
            model = None
        return Level(whole, f"{level.prefix}{name}/", model, legacy=self.editor.legacy)

    def outer(self, level: Level) -> tuple[Level, dict[str, Any]] | None:
        """The level around a nested one, and the layer that the nested one is there; None when it is called twice."""
        for around in self.levels():
            for whole in around.layers:
                if whole is level.whole and len(whole.get("inbound_nodes") or []) == 1:
                    return around, whole
        return None

    def find(self, node: str) -> Found:
        """Where a node of `graph` stands. Raises Unsupported when there is none."""
        node = self.renamed.get(node, node)
        found = self._find(self.top, node, 0)
        path, mark, number = node.rpartition("@")
        if found is None and mark and number.isdigit():
            found = self._find(self.top, path, int(number))
        if found is None:
            raise Unsupported(f"the model has no node '{node}'")
        return found

    def _find(self, level: Level, path: str, call: int) -> Found | None:
        rest = path[len(level.prefix) :]
        for whole in level.layers:
            name = whole["config"]["name"]
            if rest == name:
                count = len(whole.get("inbound_nodes") or [0])
                order = level.calls(name) if count > 1 else [0]
                return Found(level, whole, path, order[call % len(order)])
            if rest.startswith(f"{name}/"):
                if "layers" in whole["config"]:
                    return self._find(self.inner(level, whole), path, call)
                return self._wrapped(level, whole, f"{level.prefix}{name}", path)
        return None

    def _wrapped(self, level: Level, whole: dict[str, Any], prefix: str, path: str) -> Found | None:
        for key in ("layer", "backward_layer", "cell"):
            inner = whole["config"].get(key)
            if isinstance(inner, dict) and "class_name" in inner:
                place = f"{prefix}/{inner['config']['name']}"
                if place == path:
                    return Found(level, inner, path, 0, wrapped=True)
                if path.startswith(f"{place}/"):
                    return self._wrapped(level, inner, place, path)
        return None

    def value(self, name: str) -> tuple[Level, Tensor]:
        """Level and tensor of a value of `graph`. Raises Unsupported when there is none."""
        inputs = list(self.editor.loaded.inputs)
        if name in inputs:
            self.functional(self.top)
            return self.top, self.top.named("input_layers", inputs)[name]
        try:
            found, output = self._producer(name)
        except Unsupported:
            outputs = list(self.editor.loaded.outputs)
            if name not in outputs:
                raise Unsupported(f"the model has no value '{name}'") from None
            self.functional(self.top)
            return self.top, self.top.named("output_layers", outputs)[name]
        self.functional(found.level)
        return found.level, (found.name, found.call, output)

    def _producer(self, name: str) -> tuple[Found, int]:
        try:
            return self.find(name), 0
        except Unsupported:
            node, mark, number = name.rpartition(":")
            if not mark or not number.isdigit():
                raise
            return self.find(node), int(number)


def _layer_of(node: Any) -> Any:
    return getattr(node, "operation", None) or getattr(node, "layer", None)


def _is_tensor(value: list[Any]) -> bool:
    return len(value) >= 3 and isinstance(value[0], str) and type(value[1]) is int and type(value[2]) is int


def _common(piece: Piece, like: Any) -> dict[str, Any]:
    if piece.module != "keras.layers":
        return {}
    return {"trainable": True, "dtype": "float32" if like is None else like}


def _filled(item: Any, tensors: Sequence[Tensor]) -> Any:
    """A call's argument with the operands put in."""
    if isinstance(item, Operand):
        history = list(tensors[item.number])
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None], "dtype": "float32", "keras_history": history},
        }
    return [_filled(one, tensors) for one in item] if isinstance(item, (list, tuple)) else item


def _flat(args: tuple[Any, ...] | list[Any]) -> list[Operand]:
    found: list[Operand] = []
    for item in args:
        found += [item] if isinstance(item, Operand) else _flat(item) if isinstance(item, (list, tuple)) else []
    return found
