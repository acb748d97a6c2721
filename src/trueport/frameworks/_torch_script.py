"""TorchScript (`.pt`): loading, signature, evaluation, and a view of the inlined graph.

TorchScript runs no Python on load. It does not record shapes, and a scripted model may keep state in its attributes:
such a model is copied before every run, so that every run begins as the file says. Values inside are not traced.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import BadModel, Dim, GraphDict, NodeDict, SignatureDict, SpecDict, Unsupported
from trueport.frameworks._torch_archive import open_archive
from trueport.frameworks._torch_ops import script_name
from trueport.frameworks._torch_values import dtype_name, rounded_weight, tensor_of

_SCALARS = {"int": "int64", "float": "float64", "bool": "bool"}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_FLOAT_CODES = (5, 6, 15)
"""ScalarType codes of float16, float32 and bfloat16, which a graph holds as plain integers."""
_DOUBLE_CODE = 7


class Script:
    """A loaded TorchScript module in one precision."""

    def __init__(self, path: str, precision: str = "float32") -> None:
        import torch

        open_archive(path).close()
        try:
            self.module = torch.jit.load(path, map_location="cpu").eval()
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0][:200]
            raise BadModel(f"{path}: the TorchScript archive cannot be loaded ({line})") from error
        if not hasattr(self.module, "forward"):
            raise Unsupported(f"{path}: the TorchScript module has no method 'forward'")
        self.precision = precision
        self._double = False
        self.examples: dict[str, list[int]] = {}
        self.schema = self.module._c._get_method("forward").schema
        self.stateful = _keeps_state(self.module.inlined_graph)
        self.inputs, self._calls = self._read_inputs(path)
        self._described, self._outputs = self._describe()
        if precision == "float64":
            self.module = _double(self.module, stateful=self.stateful)
            self._double = True
        elif precision == "int8":
            raise Unsupported("int8 simulated: the values inside a TorchScript model cannot be reached")
        elif precision != "float32":
            self._round(precision)

    def _read_inputs(self, path: str) -> tuple[list[SpecDict], list[tuple[str, str]]]:
        """Specs, and for every argument in call order (name, kind): kind "tensor", "int", "float", "bool"."""
        names = [argument.name for argument in self.schema.arguments[1:]]
        traced, rows = _traced_inputs(path, names), _index_inputs(self.module.inlined_graph, self.module)
        specs: list[SpecDict] = []
        calls: list[tuple[str, str]] = []
        for argument in self.schema.arguments[1:]:
            kind, name = str(argument.type), argument.name
            if kind == "Tensor":
                # A scripted model says nothing about its tensors: taken to be float32, unless they are indices.
                dtype, example = traced.get(name, ("int64" if name in rows else "float32", None))
                shape: list[Dim] | None = None if example is None else [None for _ in example]
                specs.append({"name": name, "dtype": dtype, "shape": shape})
                if name in rows:
                    specs[-1]["minimum"], specs[-1]["maximum"] = 0, rows[name] - 1
                if example is not None:
                    self.examples[name] = list(example)
                calls.append((name, "tensor"))
            elif kind in _SCALARS:
                specs.append({"name": name, "dtype": _SCALARS[kind], "shape": []})
                calls.append((name, kind))
            elif not argument.has_default_value():
                raise Unsupported(f"input '{name}' of the TorchScript model is of type {kind}, not a tensor")
        return specs, calls

    def _round(self, precision: str) -> None:
        transposed = {
            name + ".weight"
            for name, module in self.module.named_modules()
            if "ConvTranspose" in getattr(module, "original_name", "")
        }
        for name, value in self.module.named_parameters():
            value.data.copy_(rounded_weight(value.data, precision, axis=1 if name in transposed else 0))

    # ---- describing ----

    def _probe(self, more: int) -> dict[str, Any]:
        """The outputs for zeros of the example's shapes, with axis 0 of every input longer by `more`; {} if it fails."""
        import torch

        sizes = {name: [shape[0] + more, *shape[1:]] if shape else [] for name, shape in self.examples.items()}
        row = {spec["name"]: np.zeros(sizes[spec["name"]], spec["dtype"]) for spec in self.inputs}
        with contextlib.suppress(Exception), torch.inference_mode():
            return self.evaluate(row)
        return {}

    def _describe(self) -> tuple[list[SpecDict], list[SpecDict]]:
        """(inputs, outputs) as the signature tells them.

        A traced model is described by its example, with an open batch axis when it really runs at another size of it
        and the outputs follow; other axes may be open too, which the file does not say. `run` takes any size.
        """
        if self._calls and all(kind == "tensor" and name in self.examples for name, kind in self._calls):
            base = self._probe(0)
            if base:
                wider = self._probe(1)
                batches = {shape[0] for shape in self.examples.values() if shape}
                follow = all(_grows(value, wider.get(name)) for name, value in base.items())
                is_open = bool(wider) and follow and len(batches) == 1
                inputs = [spec.copy() for spec in self.inputs]
                for spec in inputs:
                    shape = self.examples[spec["name"]]
                    spec["shape"] = ["batch", *shape[1:]] if is_open and shape else list(shape)
                return inputs, [_output(name, value, is_open) for name, value in base.items()]
        (result,) = self.schema.returns
        count = _count(str(result.type)) or 1
        plain: list[SpecDict] = [
            {"name": f"output_{index}", "dtype": "float32", "shape": None} for index in range(count)
        ]
        return self.inputs, plain

    def signature(self) -> SignatureDict:
        """Describe the model; see SignatureDict. The sizes are the traced example's; those of a scripted model are unknown."""
        parameters = list(self.module.parameters())
        floats = Counter(dtype_name(p.dtype) for p in parameters if p.is_floating_point())
        meta = {
            "producer": "TorchScript",
            "precision": floats.most_common(1)[0][0] if floats else "float32",
            "operators": dict(
                Counter(kind.replace("::", ".") for kind in _kinds(self.module.inlined_graph, tally=True))
            ),
            "parameters": sum(p.numel() for p in parameters),
            "stateful": self.stateful,
            "example_shapes": self.examples,
        }
        return {"inputs": self._described, "outputs": self._outputs, "meta": meta}

    def graph(self) -> GraphDict:
        """The inlined graph; bodies of If and Loop count as one operator each."""
        graph = self.module.inlined_graph
        names = [spec["name"] for spec in self._outputs]
        renamed, constants, nodes = _attribute_names(graph, self.module)
        for name, value in zip(names, _returned(graph)):
            renamed.setdefault(value, name)
        for node in graph.nodes():
            if node.kind() in ("prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::TupleConstruct"):
                continue
            nodes.append(_node(node, renamed))
        inputs = [spec["name"] for spec in self.inputs]
        return {"nodes": nodes, "inputs": inputs, "outputs": names, "constants": constants}

    # ---- evaluating ----

    def evaluate(self, row: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run once; output name -> tensor. Names of dictionary results are their keys."""
        module = copy.deepcopy(self.module) if self.stateful else self.module
        double = self._double
        arguments = []
        for (name, kind), spec in zip(self._calls, self.inputs):
            value = np.asarray(row[name])
            arguments.append(tensor_of(value, spec["dtype"], double=double) if kind == "tensor" else value.item())
        try:
            return dict(_flatten(module(*arguments)))
        except RuntimeError as error:
            if double:  # what fails in float64 alone: a list of weights inside a constant stays float32
                raise Unsupported(f"float64: {str(error).strip().splitlines()[-1][:200]}") from error
            raise


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [
            pair for key, item in value.items() for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, (tuple, list)):
        start = prefix or "output"
        return [pair for index, item in enumerate(value) for pair in _flatten(item, f"{start}_{index}")]
    return [(prefix or "output_0", value)]


def _count(kind: str) -> int | None:
    if kind in ("Tensor", *_SCALARS):
        return 1
    parts = re.fullmatch(r"Tuple\[(.*)\]|\((.*)\)", kind)
    items = [] if parts is None else [item.strip() for item in (parts.group(1) or parts.group(2)).split(",")]
    return len(items) if items and all(item in ("Tensor", *_SCALARS) for item in items) else None


def _kinds(graph: Any, *, tally: bool = False) -> list[str]:
    """Kinds of all nodes, bodies included; with `tally` only those that compute."""
    found, blocks = [], [graph]
    while blocks:
        for node in blocks.pop().nodes():
            if not tally or not node.kind().startswith("prim::") or node.kind() in ("prim::If", "prim::Loop"):
                found.append(node.kind())
            blocks.extend(node.blocks())
    return found


class _Shapes(pickle.Unpickler):
    """Reads sizes and storage types out of a pickle of tensors; every name in it becomes a stand-in, so nothing runs."""

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {
            "_rebuild_tensor_v2": lambda storage, offset, size, *rest: (_STORAGES.get(storage), tuple(size)),
            "restore_type_tag": lambda value, tag: value,
        }
        if name.endswith("Storage"):
            return name
        return stand_ins.get(name, lambda *arguments: None)

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


def _keeps_state(graph: Any) -> bool:
    """Whether a run can change the module: it sets an attribute, or works in place on (a view of) a stored tensor."""
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            kind = node.kind()
            if kind == "prim::SetAttr":
                return True
            if kind.startswith("aten::") and kind.endswith("_") and not kind.endswith("__") and _is_stored(node):
                return True
            blocks.extend(node.blocks())
    return False


def _is_stored(node: Any) -> bool:
    """Whether the first input comes from an attribute of the module, through the first inputs of any operators."""
    while True:
        first = next(iter(node.inputs()), None)
        if first is None:
            return False
        node = first.node()
        if node.kind() == "prim::GetAttr":
            return True


def _traced_inputs(path: str, names: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Argument name -> (dtype, shape) of the example that `torch.jit.trace` keeps beside the model; {} if scripted."""
    with open_archive(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith("/traced_inputs.pkl")), None)
        if entry is None:
            return {}
        try:
            stored = _Shapes(io.BytesIO(archive.read(entry))).load()
            return {name: value for name, value in zip(names, stored["forward"]) if value is not None and value[0]}
        except Exception:  # noqa: BLE001 -- the entry is a convenience; whatever it holds, the model itself is sound
            return {}


def _double(module: Any, *, stateful: bool) -> Any:
    """The module frozen into one graph, with parameters, constants and dtype arguments widened to float64."""
    import torch

    if stateful:
        raise Unsupported("float64: a TorchScript model that keeps state cannot be widened")
    try:
        frozen = torch.jit.freeze(module.eval(), optimize_numerics=False)
    except RuntimeError as error:
        raise Unsupported(f"float64: the TorchScript model cannot be frozen ({str(error).strip()[:120]})") from error
    blocks = [frozen.graph]
    while blocks:
        for node in blocks.pop().nodes():
            blocks.extend(node.blocks())
            _widen(node, frozen.graph)
    return frozen


def _widen(node: Any, graph: Any) -> None:
    import torch

    if node.kind() == "prim::Constant" and node.hasAttribute("value") and node.kindOf("value") == "t":
        value = node.t("value")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            node.t_("value", value.detach().double())
        return
    schema = node.schema()
    if schema == "(no schema)" or "dtype" not in schema:
        return
    arguments = [argument.name for argument in torch._C.parse_schema(schema).arguments]
    for name, value in zip(arguments, node.inputs()):
        source = value.node()
        if name != "dtype" or source.kind() != "prim::Constant" or not source.hasAttribute("value"):
            continue
        if source.kindOf("value") == "i" and source.i("value") in _FLOAT_CODES:
            # The same constant may also be a size or an axis, so it stays and this operator gets its own.
            code = graph.insertConstant(_DOUBLE_CODE)
            code.node().moveBefore(node)
            node.replaceInputWith(value, code)


def _attribute_names(graph: Any, module: Any) -> tuple[dict[str, str], dict[str, dict[str, Any]], list[NodeDict]]:
    """(value -> public name of inputs and parameters, constants, an empty list of nodes)."""
    renamed: dict[str, str] = {}
    owner: dict[str, str] = {}
    tensors = dict(module.named_parameters())
    tensors.update(module.named_buffers())
    constants: dict[str, dict[str, Any]] = {}
    values = list(graph.inputs())
    owner[values[0].debugName()] = ""
    for value in values[1:]:
        renamed[value.debugName()] = value.debugName().partition(".")[0]
    for node in graph.nodes():
        if node.kind() == "prim::GetAttr":
            parent = owner.get(next(iter(node.inputs())).debugName())
            if parent is not None:
                full = f"{parent}.{node.s('name')}".lstrip(".")
                out = next(iter(node.outputs())).debugName()
                owner[out] = full
                if full in tensors:
                    renamed[out] = full
                    constants[full] = {"dtype": dtype_name(tensors[full].dtype), "shape": list(tensors[full].shape)}
    return renamed, constants, []


def _returned(graph: Any) -> list[str]:
    """Debug names of the values that are the outputs, through one tuple."""
    (value,) = list(graph.outputs())
    node = value.node()
    return [item.debugName() for item in (node.inputs() if node.kind() == "prim::TupleConstruct" else [value])]


def _node(node: Any, renamed: Mapping[str, str]) -> NodeDict:
    native = node.kind().replace("::", ".")
    outputs = [renamed.get(value.debugName(), value.debugName()) for value in node.outputs()]
    inputs: list[str] = []
    attributes: dict[str, Any] = {}
    for index, value in enumerate(node.inputs()):
        inputs.extend(renamed.get(name, name) for name in _flat_inputs(value))
        constant = value.toIValue() if value.node().kind() == "prim::Constant" else None
        if isinstance(constant, (bool, int, float, str)):
            attributes[f"arg{index}"] = constant
    name = outputs[0] if outputs else node.kind()
    op = {"prim.If": "If", "prim.Loop": "Loop"}.get(native) or script_name(native)
    return {
        "name": name,
        "op": op,
        "native_op": node.kind(),
        "inputs": inputs,
        "outputs": outputs,
        "attributes": attributes,
    }


def _output(name: str, value: Any, is_open: bool) -> SpecDict:
    import torch

    if isinstance(value, torch.Tensor):
        shape: list[Dim] = list(value.shape)
        if is_open and shape:
            shape[0] = "batch"
        return {"name": name, "dtype": dtype_name(value.dtype), "shape": shape}
    return {"name": name, "dtype": _SCALARS[type(value).__name__], "shape": []}


def _grows(value: Any, wider: Any) -> bool:
    """Whether an output is longer by one on axis 0 and the same elsewhere."""
    if not hasattr(value, "shape") or not hasattr(wider, "shape") or not value.dim() or value.dim() != wider.dim():
        return False
    return bool(wider.shape[0] == value.shape[0] + 1 and wider.shape[1:] == value.shape[1:])


def _index_inputs(graph: Any, module: Any) -> dict[str, int]:
    """Input name -> number of rows, for inputs that an embedding takes as its indices."""
    renamed, constants, _ = _attribute_names(graph, module)
    found: dict[str, int] = {}
    for node in graph.nodes():
        if node.kind() in ("aten::embedding", "aten::embedding_bag"):
            weight, index = [value.debugName() for value in node.inputs()][:2]
            rows = constants.get(renamed.get(weight, ""), {}).get("shape", [])
            if rows and index in renamed:
                found[renamed[index]] = min(rows[0], found.get(renamed[index], rows[0]))
    return found


def _flat_inputs(value: Any) -> Sequence[str]:
    node = value.node()
    if node.kind() == "prim::Constant":
        return []
    if node.kind() in ("prim::ListConstruct", "prim::TupleConstruct"):
        return [name for item in node.inputs() for name in _flat_inputs(item)]
    return [value.debugName()]
