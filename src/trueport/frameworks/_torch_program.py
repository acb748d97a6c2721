"""An exported program (`.pt2`): its signature, its values by name, and its evaluation node by node.

A program is evaluated by one FX interpreter for `run` and `trace` alike, so that looking inside changes nothing.
Names: an input and an operator keep the name that the graph gives them, a parameter has the module's own name
("layer1.conv.weight"), an output is "output_0", ... or the key under which the model returns it. The outputs of an
operator that gives several are `node#0`, `node#1`, ...; `getitem` is no operator, its users read `node#i`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _torch_archive as archive
from trueport.frameworks._base import (
    BadModel,
    Dim,
    GraphDict,
    SignatureDict,
    SpecDict,
    Unsupported,
    Untrusted,
)
from trueport.frameworks._torch_ops import COPYING, TRANSPARENT
from trueport.frameworks._torch_values import Grid, dtype_name, is_float, native_name, rounded_weight, tensor_of
from trueport.frameworks._torch_view import view
from trueport.frameworks._torch_widen import demand_double, make_double

Hook = Callable[[Any, Any], Any]
"""(fx node, value) -> the value to go on with; called for every input and operator in execution order."""


def load(path: str, *, trust: bool) -> Any:
    """Return the ExportedProgram. Raises BadModel, Untrusted, Unsupported (another version's file)."""
    import torch

    program = archive.read_program(path)
    if not trust:
        reason = archive.code_that_loading_would_run(path) or _pickled_sample_inputs(path)
        if reason is not None:
            raise Untrusted(
                f"{path}: loading it can run code, because {reason}; give --trust if you know where it is from"
            )
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- a file object, because torch refuses paths with other suffixes
            return torch.export.load(file)
    except Exception as error:
        wrote, here = archive.written_by(program), torch.__version__.partition("+")[0]
        if wrote != here:
            raise Unsupported(
                f"{path} was written by torch {wrote or '(unknown)'} and does not load in {here}: a .pt2 belongs to its torch "
                f"version; use --with torch=={wrote or 'VERSION'}, or give module:factory and weights, or TorchScript"
            ) from error
        raise BadModel(f"{path}: the exported program cannot be read ({_first_line(error)}); save it again") from error


def _pickled_sample_inputs(path: str) -> str | None:
    import io

    import torch

    for data in archive.sample_inputs(path):
        try:
            if data:
                torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # noqa: BLE001 -- whatever it is, the plain loader would go on to unpickle it freely
            return "its sample inputs are more than tensors"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Program:
    """A loaded program in one precision. `exported` is changed in place for precisions other than float32.

    native: the program of which this one is a finer view; inputs, outputs and constants get the names that they have
    there. origins: node name -> name of the native node that it is a part of.
    """

    def __init__(
        self,
        exported: Any,
        precision: str = "float32",
        *,
        native: Program | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.exported = exported
        self.native = native
        self.origins = dict(origins or {})
        self.module = exported.graph_module
        self.nodes = list(self.module.graph.nodes)
        self.precision = precision
        self.constants: dict[str, Any] = {}  # placeholder name -> tensor
        self._fixed: dict[str, Any] = {}  # placeholder name -> number, string or None that the export fixed
        self.targets: dict[str, str] = {}  # placeholder name -> the module's name of it
        self._read_inputs()
        self.specs = [_spec(node.name, node.meta.get("val")) for node in self.inputs]
        self.mutates = any(is_mutable(node) for node in self.nodes)
        self.outputs = self._read_outputs()
        self.aliases = self._read_aliases()
        self._output_names = self._name_outputs()
        if precision != "float32":
            self._change_precision()

    # ---- reading ----

    def _read_inputs(self) -> None:
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        self.inputs: list[Any] = []
        taken = {node.name for node in (self.native or self).nodes}
        for node, spec in zip(placeholders, self.exported.graph_signature.input_specs):
            kind = spec.kind.name
            if kind == "USER_INPUT":
                if type(spec.arg).__name__ == "ConstantArgument":
                    self._fixed[node.name] = spec.arg.value
                else:
                    self.inputs.append(node)
            elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR", "CUSTOM_OBJ"):
                self.constants[node.name] = self._stored(spec)
                self.targets[node.name] = spec.target if spec.target not in taken else node.name
            else:
                raise Unsupported(f"the program has an input of kind {kind}, which is not run here")

    def _stored(self, spec: Any) -> Any:
        for table in (self.exported.state_dict, self.exported.constants):
            if spec.target in table:
                return table[spec.target]
        raise BadModel(f"the program refers to '{spec.target}', which the file does not hold")

    def _read_outputs(self) -> list[tuple[int, str]]:
        """(position in the flat result, name) of every output that is a tensor or number."""
        specs = self.exported.graph_signature.output_specs
        user = [i for i, spec in enumerate(specs) if spec.kind.name == "USER_OUTPUT"]
        names = _output_paths(self.exported.call_spec.out_spec, len(user))
        self.results = list(self.nodes[-1].args[0])
        keep = []
        for index, name in zip(user, names):
            result = self.results[index]
            if result is not None and not isinstance(result, str):
                keep.append((index, name))
        return keep

    def _read_aliases(self) -> dict[Any, tuple[Any, int]]:
        """getitem node -> (the operator with several outputs, index)."""
        found = {}
        for node in self.nodes:
            if node.op == "call_function" and node.target is operator.getitem:
                source, index = node.args
                if isinstance(source.meta.get("val"), (tuple, list)) and isinstance(index, int):
                    found[node] = (source, index)
        return found

    def _name_outputs(self) -> dict[Any, str]:
        """(node, index or None) -> output name, for every value that an output is the first to show."""
        taken = {node.name for node in self.nodes} | set(self.targets.values())
        named: dict[Any, str] = {}
        final: list[tuple[int, str]] = []
        for index, name in self.outputs:
            node = self.results[index]
            producer = node.name if hasattr(node, "name") else None
            if self.native is not None:
                name = self.native.outputs[len(final)][1]
            while self.native is None and name in taken and name != producer:
                name = f"output_{name}"
            taken.add(name)
            final.append((index, name))
            key = self._key(node)
            if producer is not None and key[0].op == "call_function" and key not in named:
                named[key] = name
        self.outputs = final
        return named

    def _key(self, node: Any) -> tuple[Any, int | None]:
        return self.aliases.get(node, (node, None))

    def name_of(self, node: Any, index: int | None = None) -> str:
        """The public name of one value."""
        key = self._key(node) if index is None else (node, index)
        if key in self._output_names:
            return self._output_names[key]
        base = self.targets.get(key[0].name, key[0].name)
        return base if key[1] is None else f"{base}#{key[1]}"

    # ---- describing ----

    def signature(self, version: str) -> SignatureDict:
        """Describe the program; see SignatureDict. `version`: of the torch that wrote it."""
        inputs = [_spec(node.name, node.meta.get("val")) for node in self.inputs]  # a copy
        for name, (low, high) in self._index_ranges().items():
            spec = next(item for item in inputs if item["name"] == name)
            spec["minimum"], spec["maximum"] = low, high
        outputs = [_spec(name, _value_of(self.results[index])) for index, name in self.outputs]
        parameters = [self.constants[spec.arg.name] for spec in self._parameter_specs()]
        floats = Counter(dtype_name(p.dtype) for p in parameters if p.is_floating_point())
        meta = {
            "producer": f"torch {version}".strip(),
            "torch": version,
            "precision": floats.most_common(1)[0][0] if floats else "float32",
            "writes_state": self._writes_state(),
            "operators": dict(Counter(native_name(node) for node in self.operators())),
            "parameters": sum(p.numel() for p in parameters),
            "constraints": {name: list(bounds) for name, bounds in self.ranges().items()},
        }
        return {"inputs": inputs, "outputs": outputs, "meta": meta}

    def _writes_state(self) -> bool:
        """Whether an operator writes into a stored tensor, itself or a view of it."""
        if self.exported.graph_signature.buffers_to_mutate:
            return True
        for node in filter(is_mutable, self.nodes):
            for argument, value in zip(node.target._schema.arguments, node.args):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    while getattr(value, "op", "") == "call_function" and native_name(value) in TRANSPARENT - COPYING:
                        value = value.args[0]
                    if getattr(value, "name", None) in self.constants:
                        return True
        return False

    def _parameter_specs(self) -> list[Any]:
        return [spec for spec in self.exported.graph_signature.input_specs if spec.kind.name == "PARAMETER"]

    def ranges(self) -> dict[str, tuple[int | None, int | None]]:
        """Symbolic size -> its inclusive range, None where it is open."""
        found = {}
        for symbol, interval in self.exported.range_constraints.items():
            found[str(symbol)] = (_bound(interval.lower), _bound(interval.upper))
        return found

    def operators(self) -> list[Any]:
        """The nodes that compute something, in execution order."""
        return [
            node for node in self.nodes if node.op == "call_function" and node not in self.aliases and not _checks(node)
        ]

    def _index_ranges(self) -> dict[str, tuple[int, int]]:
        """Input name -> legal indices, for integer inputs that reach an embedding (or one_hot) unchanged."""
        import torch

        found: dict[str, tuple[int, int]] = {}
        for node in self.operators():
            name = native_name(node)
            if name in ("aten.embedding", "aten.embedding_bag", "aten._embedding_bag"):
                source, rows = node.args[1], node.args[0].meta["val"].shape[0]
            elif name == "aten.one_hot" and len(node.args) > 1 and node.args[1] > 0:
                source, rows = node.args
            else:
                continue
            for start, offset in _origins(source):
                if start in self.inputs and isinstance(start.meta.get("val"), torch.Tensor):
                    low, high = found.get(start.name, (-(2**62), 2**62))
                    found[start.name] = (max(low, -offset), min(high, int(rows) - 1 - offset))
        return found

    def names(self) -> list[str]:
        """Names of all tensors that `trace` can give, in execution order; a value that is two outputs has both names."""
        produced = [name for node in self.operators() for name, _ in self.tensors(node)]
        seen = set(produced)
        return produced + [name for _, name in self.outputs if name not in seen]

    def tensors(self, node: Any) -> Iterator[tuple[str, int | None]]:
        """(name, index) of the tensors that an operator gives."""
        import torch

        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            yield self.name_of(node), None
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if isinstance(item, torch.Tensor) and not _has_no_element(item):
                    yield self.name_of(node, index), index

    def graph(self) -> GraphDict:
        """The read-only view; see `_torch_view`."""
        return view(self)

    # ---- evaluating ----

    def evaluate(self, row: Mapping[str, np.ndarray], hook: Hook | None = None) -> list[Any]:
        """Run once on one run's arrays and return the outputs in the order of the signature.

        Raises Unsupported when float64 was asked for and an operator gave another float."""
        import torch

        double = self.precision == "float64"

        class Walk(torch.fx.Interpreter):  # type: ignore[misc]
            def run_node(self, node: Any) -> Any:
                value = super().run_node(node)
                if double:
                    demand_double(node, value)
                return hook(node, value) if hook is not None and node.op in ("placeholder", "call_function") else value

        arguments = [self.argument(node, row, double) for node in self.nodes if node.op == "placeholder"]
        flat = Walk(self.module).run(*arguments, enable_io_processing=False)
        return [flat[index] for index, _ in self.outputs]

    def argument(self, node: Any, row: Mapping[str, np.ndarray], double: bool = False) -> Any:
        """What a placeholder stands for in one run: a stored tensor, a fixed number, or a fresh copy of an input."""
        import torch

        if node.name in self.constants:
            value = self.constants[node.name]
            return value.clone() if self.mutates and isinstance(value, torch.Tensor) else value
        if node.name in self._fixed:
            return self._fixed[node.name]
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return tensor_of(row[node.name], dtype_name(value.dtype), double=double)
        return row[node.name].item()

    def evaluate_int8(self, rows: Sequence[Mapping[str, np.ndarray]]) -> list[list[Any]]:
        """Run every row with each float value rounded to 8 bits, on ranges seen over all the rows."""
        grids: dict[Any, Grid] = {}

        def each(node: Any, value: Any, act: Callable[[Any, Any], Any]) -> Any:
            if node.name in self.constants or node.target is operator.getitem:
                return value
            if isinstance(value, (tuple, list)):
                return type(value)(act((node, i), item) if is_float(item) else item for i, item in enumerate(value))
            return act((node, None), value) if is_float(value) else value

        def see(key: Any, tensor: Any) -> Any:
            grids.setdefault(key, Grid()).see(tensor)
            return tensor

        for row in rows:
            self.evaluate(row, lambda node, value: each(node, value, see))
        return [
            self.evaluate(row, lambda node, value: each(node, value, lambda key, t: grids[key].apply(t)))
            for row in rows
        ]

    # ---- precision ----

    def _change_precision(self) -> None:
        import torch

        transposed = {
            node.args[1].name
            for node in self.nodes
            if node.op == "call_function" and "conv_transpose" in str(node.target) and hasattr(node.args[1], "name")
        }
        for name, value in self.constants.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            value = value.detach()
            if self.precision == "float64":
                self.constants[name] = value.double()
            else:
                self.constants[name] = rounded_weight(value, self.precision, axis=1 if name in transposed else 0)
        if self.precision == "float64":
            for module in self.module.modules():
                if isinstance(module, torch.fx.GraphModule):
                    make_double(module)
            self.nodes = list(self.module.graph.nodes)


def is_mutable(node: Any) -> bool:
    """Whether an operator writes into one of its operands."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return bool(schema is not None and schema.is_mutable)


def _has_no_element(tensor: Any) -> bool:
    """True for what an operator leaves empty, such as the batch statistics of BatchNorm in evaluation."""
    return any(isinstance(size, int) and size == 0 for size in tensor.shape)


def _checks(node: Any) -> bool:
    """Whether the operator only checks or marks, and has no result."""
    name = native_name(node)
    return name.startswith(("aten._assert", "aten.sym_constrain", "aten._set_grad", "_C._set_grad"))


def _value_of(result: Any) -> Any:
    return result.meta.get("val") if hasattr(result, "meta") else result


def _spec(name: str, value: Any) -> SpecDict:
    import torch

    if isinstance(value, torch.Tensor):
        return {"name": name, "dtype": dtype_name(value.dtype), "shape": [_dim(size) for size in value.shape]}
    kinds = ((bool, "bool"), (int, "int64"), (float, "float64"))
    plain = next((dtype for kind, dtype in kinds if isinstance(value, kind)), "")
    symbolic = {"SymInt": "int64", "SymFloat": "float64", "SymBool": "bool"}.get(type(value).__name__, "int64")
    return {"name": name, "dtype": plain or symbolic, "shape": []}


def _dim(size: Any) -> Dim:
    return size if isinstance(size, int) else str(size)


def _bound(limit: Any) -> int | None:
    """A limit of a range as an int; None for infinity (which the exporter also writes as the largest int)."""
    value = int(limit) if getattr(limit, "is_Integer", False) or isinstance(limit, int) else None
    return value if value is not None and abs(value) < 2**62 else None


def _origins(node: Any) -> list[tuple[Any, int]]:
    """(placeholder, added constant) from which an index comes through operators that keep values."""
    found, todo = [], [(node, 0)]
    while todo:
        item, offset = todo.pop()
        if not hasattr(item, "op"):
            continue
        if item.op == "placeholder":
            found.append((item, offset))
        elif item.op == "call_function":
            name = native_name(item)
            if name in TRANSPARENT:
                todo.append((item.args[0], offset))
            elif name in ("aten.add", "aten.sub") and isinstance(item.args[1], int) and not item.kwargs:
                todo.append((item.args[0], offset + (item.args[1] if name == "aten.add" else -item.args[1])))
            elif name in ("aten.cat", "aten.stack"):
                todo.extend((one, offset) for one in item.args[0])
    return found


def _output_paths(spec: Any, count: int) -> list[str]:
    """Names of the flat outputs: the keys under which the model returns them, else output_0, output_1, ..."""
    import torch.utils._pytree as pytree

    plain = [f"output_{index}" for index in range(count)]
    try:
        paths, _ = pytree.tree_flatten_with_path(spec.unflatten(list(range(count))))
    except Exception:  # noqa: BLE001 -- an output class that cannot be rebuilt here still has its positions
        return plain
    names = []
    for (path, _), fallback in zip(paths, plain):
        parts = [str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", "")))) for step in path]
        named = any(hasattr(step, "key") or hasattr(step, "name") for step in path)
        names.append(
            ".".join(parts) if named and not parts[0].isdigit() else "output_" + "_".join(parts) if parts else fallback
        )
    return names if len(names) == count and len(set(names)) == count else plain
