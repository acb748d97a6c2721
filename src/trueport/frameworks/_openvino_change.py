"""An OpenVINO model under change: names of layers and values that stay valid while it changes, and how it is written. Runs in a worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Arrays, BadModel, Unsupported
from trueport.frameworks._openvino_emit import Emitter
from trueport.frameworks._openvino_file import Opened, fresh, key, read, reason, shown_shape


class Change:
    """The model, and what its names mean now. `notes`: sentences worth showing."""

    def __init__(self, path: str, arrays: Arrays) -> None:
        self.path, self.arrays = path, arrays
        self.model = read(path)
        one = Opened(self.model, path)
        self.nodes = dict(zip(one.node_names, one.computing))
        by_key = {key(node): node for node in self._all()}
        self.values = {name: by_key[place].output(port) for (place, port), name in one.names.items()}
        self.inputs = list(one.input_names)
        self.outputs = dict(zip(one.output_names, one.results))
        self.widened = {key(constant): node for node in self._all() if (constant := one.widened.get(key(node)))}
        self.notes: list[str] = []
        self.taken = {node.get_friendly_name() for node in self._all()} | set(self.values)

    def _all(self) -> Iterable[Any]:
        return list(self.model.get_ordered_ops())

    # -- names

    def node(self, name: str) -> Any:
        """The layer of this name. Raises ValueError."""
        if name not in self.nodes:
            raise ValueError(f"{Path(self.path).name} has no operator '{name}'")
        return self.nodes[name]

    def value(self, name: str) -> Any:
        """The port that gives the value of this name; of a widened constant the widened one. Raises ValueError."""
        if name not in self.values:
            raise ValueError(f"{Path(self.path).name} has no value '{name}'")
        port = self.values[name]
        wide = self.widened.get(key(port.get_node()))
        return port if wide is None else wide.output(0)

    def array(self, name: str) -> np.ndarray:
        """An array of the edit. Raises ValueError."""
        if name not in self.arrays:
            raise ValueError(f"the edit names an array '{name}' that is not given")
        return np.asarray(self.arrays[name])

    def emitter(self) -> Emitter:
        """What makes new layers."""
        return Emitter(self.new_name)

    def new_name(self) -> str:
        """A friendly name that no layer has."""
        name = fresh("edited", self.taken)
        self.taken.add(name)
        return name

    def name_of(self, port: Any) -> str:
        """The name of the value that a port gives."""
        node = port.get_node()
        for name, other in self.values.items():
            if key(other.get_node()) == key(node) and other.get_index() == port.get_index():
                return name
        if node.get_type_name() == "Convert":
            return self.name_of(node.input_value(0))
        return ""

    # -- constants

    def slots(self, node: Any, parameter: str) -> list[int]:
        """Where a node reads the constant of this name."""
        return [slot for slot in range(node.get_input_size()) if self.name_of(node.input_value(slot)) == parameter]

    def stored(self, node: Any, slot: int) -> Any:
        """The Constant that a node reads at a slot, behind a widening too; None where it is computed."""
        behind = node.input_value(slot).get_node()
        if behind.get_type_name() == "Convert":
            behind = behind.input_value(0).get_node()
        return behind if behind.get_type_name() == "Constant" else None

    def constant(self, array: np.ndarray, like: Any, name: str) -> Any:
        """A new Constant with the element type of another one. Its name is as near to `name` as can be."""
        import openvino

        element = like.get_element_type()
        if element.get_type_name() == "bf16":
            raise Unsupported("constants of bfloat16 are not written")
        dtype = np.dtype(element.to_dtype())
        if dtype.kind in "iu" and array.dtype.kind == "f":
            limits = np.iinfo(dtype)
            array = np.clip(np.rint(array), limits.min, limits.max)
        node = openvino.op.Constant(np.ascontiguousarray(array.astype(dtype)), shared_memory=False)
        node.set_friendly_name(fresh(name, self.taken))
        self.taken.add(node.get_friendly_name())
        self.values[node.get_friendly_name()] = node.output(0)
        return node

    @staticmethod
    def laid(array: np.ndarray, node: Any, old: Any) -> np.ndarray:
        """An array as `graph` shows it, in the layout of the file: grouped kernels have an axis of groups in front."""
        shape = [int(size) for size in old.get_output_shape(0)]
        if node.get_type_name().startswith("Group") and shown_shape(old) != shape and array.ndim == len(shape) - 1:
            return array.reshape(shape[0], array.shape[0] // shape[0], *array.shape[1:])
        return array

    # -- wiring

    def behind(self, port: Any, make: Callable[[Emitter, Any], Any], readers: Sequence[str] | None = None) -> Any:
        """Let the readers of a value (all, or those named; "" is the model's output) read what `make` makes of it."""
        before = self._readers(port, readers)
        made = make(self.emitter(), port)
        self.redirect(port, made, before)
        return made

    def _readers(self, port: Any, readers: Sequence[str] | None) -> list[Any]:
        found = list(port.get_target_inputs())
        if readers is None:
            return found
        wanted = {key(self.node(name)) for name in readers if name}
        return [
            item
            for item in found
            if key(item.get_node()) in wanted or (item.get_node().get_type_name() == "Result" and "" in readers)
        ]

    def redirect(self, old: Any, new: Any, readers: Iterable[Any]) -> None:
        """Let these inputs read another port; an output of the model keeps its name."""
        readers = list(readers)
        if (key(old.get_node()), old.get_index()) == (key(new.get_node()), new.get_index()):
            return
        results = [item for item in readers if item.get_node().get_type_name() == "Result"]
        if results and (_given_out(new) or new.get_node().get_type_name() in ("Parameter", "Constant")):
            # A value has one set of names: what is an input or an output already gets a copy for the other one's.
            new = self.emitter().op("convert", new, destination_type=new.get_element_type().get_type_name())
        names = set(old.get_names())
        labels = [name for name, port in self.outputs.items() if _same(port, old)] if results else []
        for item in readers:
            item.replace_source_output(new)
        if results:
            kept = {name for name in names if any(_is_result(item) for item in old.get_target_inputs())}
            old.get_tensor().set_names(kept)
            new.get_tensor().set_names((names or set(labels)) - kept)
            for label in labels:
                self.outputs[label] = new
                if label in self.values and _same(self.values[label], old):
                    self.values[label] = new
                    own = old.get_node().get_friendly_name()
                    self.values[fresh(own, set(self.values))] = old

    def replace(self, node: Any, make: Callable[[Emitter], Any]) -> None:
        """Put what `make` makes in the place of a layer, under its name."""
        old = node.output(0)
        readers = list(old.get_target_inputs())
        made = make(self.emitter())
        name = next((name for name, other in self.nodes.items() if key(other) == key(node)), "")
        value = self.name_of(old)
        self.redirect(old, made, readers)
        mine = made.get_node()
        if mine.get_type_name() not in ("Parameter", "Constant") and not _was_there(self, mine):
            friendly = node.get_friendly_name()
            node.set_friendly_name(self.new_name())
            mine.set_friendly_name(friendly)
            self.nodes[name] = mine
        self.values[value] = made

    # -- writing

    def save(self, out: str) -> None:
        """Work out all shapes and write the files. Raises Unsupported where the model does not hold together any more."""
        import openvino

        try:
            self.model.validate_nodes_and_infer_types()
            openvino.serialize(self.model, out, str(Path(out).with_suffix(".bin")))
            written = read(out)
            openvino.Core().compile_model(written, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except (RuntimeError, BadModel, Unsupported) as error:
            for file in (Path(out), Path(out).with_suffix(".bin")):
                file.unlink(missing_ok=True)
            raise Unsupported(f"the model does not hold together with these edits: {reason(error)}") from None


def _same(one: Any, other: Any) -> bool:
    return key(one.get_node()) == key(other.get_node()) and one.get_index() == other.get_index()


def _given_out(port: Any) -> bool:
    return any(_is_result(item) for item in port.get_target_inputs())


def _is_result(item: Any) -> bool:
    return bool(item.get_node().get_type_name() == "Result")


def _was_there(change: Change, node: Any) -> bool:
    return any(key(other) == key(node) for other in change.nodes.values())
