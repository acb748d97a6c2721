"""A framework without dependencies, for tests: small feed-forward networks in JSON that crash, hang, lie and leak on demand.

The file: {"trueport-fake": 1, "inputs": [spec], "outputs": [spec], "constants": {name: {"dtype", "shape", "data"}},
"nodes": [{"name", "op", "inputs", "outputs", "attributes"}], "faults": {function: [behaviour]}, "runs_code": bool}.
`faults` says how which function of this file misbehaves on this model; `_fake_faults.py` lists the behaviours.
"runs_code": true makes a file that only loads when it is trusted. This is a converter file as well: its step
`fake-copy` copies a model and misbehaves as its option `misbehave` and the model's faults of "convert" ask for.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _fake_edit as editing
from trueport.frameworks import _fake_faults as faults
from trueport.frameworks._base import (
    Arrays,
    BadModel,
    ConvertContext,
    ConvertReply,
    EditDict,
    Emit,
    GraphDict,
    NodeDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Step,
    Untrusted,
)

NAME = "fake"
FORMATS = {"fake": "fake"}
SUFFIXES = {"fake": ".fake"}
VARIANTS = ("default", "reversed-sum")
PRECISIONS = ("float32", "float64", "float16")
EDITS = tuple(editing.KINDS)
EDIT_FILES = ("_fake_edit",)
MAGIC = "trueport-fake"
STEPS = (
    Step(
        name="fake-copy",
        source_format="fake",
        target_format="fake",
        toolchain="fake",
        tool="numpy",
        precisions=("float32", "float16"),
        options=(("misbehave", "comma-separated behaviours of the fake framework"),),
        note="for tests",
    ),
)

Model = dict[str, Any]


def _matmul(variant: str, attributes: Mapping[str, Any], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply; the variant sums the products from the other end, which is as right and rounds otherwise."""
    if variant == "reversed-sum":
        left, right = left[..., ::-1].copy(), right[..., ::-1, :].copy()
    return np.asarray(left @ right)


def _mean(variant: str, attributes: Mapping[str, Any], value: np.ndarray) -> np.ndarray:
    axis = int(attributes.get("axis", -1))
    if variant == "reversed-sum":
        value = np.flip(value, axis).copy()
    return np.asarray(value.mean(axis=axis, keepdims=True, dtype=value.dtype))


def _softmax(value: np.ndarray) -> np.ndarray:
    powers = np.exp(value - value.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


OPS: dict[str, Callable[..., Any]] = {
    "MatMul": _matmul,
    "ReduceMean": _mean,
    "Add": lambda variant, attributes, left, right: left + right,
    "Sub": lambda variant, attributes, left, right: left - right,
    "Mul": lambda variant, attributes, left, right: left * right,
    "Relu": lambda variant, attributes, value: np.maximum(value, value.dtype.type(0)),
    "Tanh": lambda variant, attributes, value: np.tanh(value),
    "Sigmoid": lambda variant, attributes, value: 1 / (1 + np.exp(-value)),
    "Softmax": lambda variant, attributes, value: _softmax(value),
    "Concat": lambda variant, attributes, *values: np.concatenate(values, axis=int(attributes.get("axis", -1))),
    "Gather": lambda variant, attributes, table, index: table[index],
    "Transpose": lambda variant, attributes, value: np.transpose(value, attributes["perm"]),
    "Flatten": lambda variant, attributes, value: value.reshape(value.shape[0], -1),
    "Cast": lambda variant, attributes, value: value.astype(attributes["to"]),
    "Identity": lambda variant, attributes, value: value,
}
"""Operator (ONNX vocabulary) -> function(variant, attributes, *inputs)."""


def sniff(head: bytes, path: Path) -> str | None:
    """Return "fake" when the first key of the JSON file is the magic one."""
    return "fake" if head.lstrip()[:1] == b"{" and f'"{MAGIC}"'.encode() in head[:64] else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe the model. Raises BadModel for a damaged file, Untrusted for one that `runs_code`."""
    model = _open(path, "signature", trust)
    return {
        "inputs": [_spec(item) for item in model["inputs"]],
        "outputs": [_spec(item) for item in model["outputs"]],
        "meta": {
            "producer": "trueport fake",
            "precision": model.get("precision", "float32"),
            "operators": dict(Counter(node["op"] for node in model["nodes"])),
            "parameters": sum(int(np.prod(item["shape"])) for item in model["constants"].values()),
        },
    }


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case (inputs [R, *native shape]); outputs in float64 when that is the precision."""
    model = _open(path, "run", trust)
    wanted = [item["name"] for item in model["outputs"]]
    asked = model.get("faults", {}).get("run", [])
    results = {}
    for name, inputs in cases.items():
        rows = [_evaluate(model, one, precision, variant) for one in _each_run(inputs)]
        together = {value: _stack([row[value] for row in rows]) for value in wanted}
        results[name] = faults.change_results(together, asked)
    return results


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all values that nodes write, in execution order."""
    return [name for node in _open(path, "names", trust)["nodes"] for name in node["outputs"]]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Run R calls once per window of values that together fit into `budget` bytes, and emit each value [R, *shape].

    Behaviours that change results change what is emitted of the model's outputs.
    """
    model = _open(path, "trace", trust)
    runs = list(_each_run(inputs))
    sizes = {name: value.nbytes * len(runs) for name, value in _evaluate(model, runs[0], "float32", "").items()}
    unknown = [name for name in wanted if name not in sizes]
    if unknown:
        raise BadModel(f"{path}: there is no value named {', '.join(unknown)}")
    window: list[str] = []
    for index, name in enumerate(wanted):
        window.append(name)
        last = index + 1 == len(wanted)
        if last or sum(sizes[item] for item in window) + sizes[wanted[index + 1]] > budget:
            rows = [{item: values[item] for item in window} for values in _every_run(model, runs)]
            for item in window:
                _show(model, "trace", item, np.stack([row[item] for row in rows]), emit)
            window = []
    return {}


def replay(
    path: str,
    inputs: Arrays,
    given: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    variant: str,
    budget: int,
    trust: bool,
) -> dict[str, Any]:
    """Compute `wanted` with the values `given` put in; see `Framework.replay`. Behaviours act as they do in `trace`."""
    model = _open(path, "replay", trust)
    known = {item["name"] for item in model["inputs"]} | set(model["constants"])
    known.update(name for node in model["nodes"] for name in node["outputs"])
    unknown = [name for name in (*given, *wanted) if name not in known]
    if unknown:
        raise ValueError(f"there is no value named {', '.join(unknown)}")
    skipped: dict[str, str] = {}
    count = next((len(array) for array in (*inputs.values(), *given.values())), 1)
    for name in dict.fromkeys(wanted):  # each by itself, so that no window is larger than one value
        try:
            rows = [_cut_open(model, inputs, given, run, variant)(name) for run in range(count)]
            _show(model, "replay", name, np.stack(rows), emit)
        except KeyError as error:
            raise ValueError(f"the input {error} is needed to compute what is wanted; give it") from error
        except (ValueError, IndexError) as error:
            skipped[name] = f"it cannot be computed in one shape from the shapes given: {error}"
    return {"skipped": skipped}


def _cut_open(model: Model, inputs: Arrays, given: Arrays, run: int, variant: str) -> Callable[[str], np.ndarray]:
    """Return the function that computes one run's value by name, whose operators read `given` where they can."""
    makers = {node["outputs"][0]: node for node in model["nodes"]}
    wrong = _wrong(model, "replay", variant)

    @functools.cache
    def make(name: str) -> np.ndarray:
        if name in model["constants"]:
            return _constant(model["constants"][name])
        if name not in makers:
            return np.asarray((inputs[name] if name in inputs else given[name])[run])
        node = makers[name]
        operands = [np.asarray(given[item][run]) if item in given else make(item) for item in node["inputs"]]
        alone = any(item in given for item in node["inputs"])
        return _apply(node, variant, operands, wrong.get(node["name"]), alone=alone)

    return make


def _apply(
    node: Mapping[str, Any], variant: str, operands: Sequence[np.ndarray], wrong: str | None, *, alone: bool
) -> np.ndarray:
    """Run one operator, as a kernel that is `wrong` where it is: a wrong fusion only where the node is not `alone`."""
    value = np.asarray(OPS[node["op"]](variant, node.get("attributes", {}), *operands))
    if wrong == "wrong-kernel" or (wrong == "wrong-fusion" and not alone):
        value = value + value.dtype.type(1)
    return value


def _show(model: Model, function: str, name: str, array: np.ndarray, emit: Emit) -> None:
    """Emit a value; of an output, what the behaviours asked for leave of it."""
    if name in [item["name"] for item in model["outputs"]]:
        array = faults.change_results({name: array}, model.get("faults", {}).get(function, []))[name]
    emit(name, array)


def _wrong(model: Model, function: str, variant: str) -> dict[str, str]:
    return faults.wrong_kernels(model.get("faults", {}).get(function, []), variant)


def graph(path: str, *, trust: bool) -> GraphDict:
    """The network as it stands in the file."""
    model = _open(path, "graph", trust)
    nodes: list[NodeDict] = [
        {
            "name": node["name"],
            "op": node["op"],
            "native_op": node["op"],
            "inputs": list(node["inputs"]),
            "outputs": list(node["outputs"]),
            "attributes": dict(node.get("attributes", {})),
        }
        for node in model["nodes"]
    ]
    return {
        "nodes": nodes,
        "inputs": [item["name"] for item in model["inputs"]],
        "outputs": [item["name"] for item in model["outputs"]],
        "constants": {
            name: {"dtype": item["dtype"], "shape": item["shape"]} for name, item in model["constants"].items()
        },
    }


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant under its name."""
    model = _open(path, "parameters", trust)
    for name, item in model["constants"].items():
        emit(name, _constant(item))
    return {}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model at `out` with the edits applied; its faults stay."""
    _open(path, "edit", trust)
    editing.apply(path, edits, arrays, out)
    return {"notes": []}


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Copy the model to `out`, without its faults, and misbehave as asked."""
    asked = [item for item in str(options.get("misbehave", "")).split(",") if item]
    faults.check(asked)
    model = _open(source, "convert", context["trust"])
    asked += model.get("faults", {}).get("convert", [])
    faults.act(asked)
    copy = {key: value for key, value in model.items() if key != "faults"}
    if options.get("precision") == "float16":
        copy["precision"] = "float16"
        copy["constants"] = {name: _rounded(item) for name, item in copy["constants"].items()}
    faults.write(text_of(faults.change_model(copy, asked)), Path(out), asked)
    return {"notes": []}


def network(
    *, seed: int = 0, features: int = 6, hidden: int = 8, classes: int = 4, inputs: int = 1, **more: Any
) -> Model:
    """Make a network with `inputs` inputs [batch, features] and outputs "scores" and "chances" [batch, classes].

    The inputs are added, then come an affine layer, ReLU, an affine layer and softmax. `more`: other keys of the file,
    such as faults={"run": ["crash"]}.
    """
    random = np.random.default_rng(seed)
    given = [f"x{index}" for index in range(inputs)]
    constants = {
        name: editing.constant(random.standard_normal(shape).astype(np.float32))
        for name, shape in (
            ("w1", (features, hidden)),
            ("b1", (hidden,)),
            ("w2", (hidden, classes)),
            ("b2", (classes,)),
        )
    }
    layers: list[tuple[str, list[str], str]] = [
        ("Add", [before, name], f"sum_{name}")
        for before, name in zip(["x0", *(f"sum_{n}" for n in given[1:])], given[1:])
    ]
    layers += [
        ("MatMul", [layers[-1][2] if layers else "x0", "w1"], "product_1"),
        ("Add", ["product_1", "b1"], "affine_1"),
        ("Relu", ["affine_1"], "hidden"),
        ("MatMul", ["hidden", "w2"], "product_2"),
        ("Add", ["product_2", "b2"], "scores"),
        ("Softmax", ["scores"], "chances"),
    ]
    return {
        MAGIC: 1,
        "inputs": [{"name": name, "dtype": "float32", "shape": ["batch", features]} for name in given],
        "outputs": [{"name": name, "dtype": "float32", "shape": ["batch", classes]} for name in ("scores", "chances")],
        "constants": constants,
        "nodes": [
            {"name": f"{op}_{output}", "op": op, "inputs": values, "outputs": [output], "attributes": {}}
            for op, values, output in layers
        ],
        **more,
    }


def text_of(model: Model) -> str:
    """Return the file's text; the magic key comes first, so that the head tells the format."""
    return json.dumps({MAGIC: model[MAGIC], **model}, indent=1)


def _open(path: str, function: str, trust: bool) -> Model:
    file = Path(path)
    try:
        stat = file.stat()
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    model = _parse(path, stat.st_mtime_ns, stat.st_size)
    if model.get("runs_code") and not trust:
        raise Untrusted(f"{path}: loading this model runs code from it")
    if function != "convert":
        faults.act(model.get("faults", {}).get(function, []))
    return model


@functools.lru_cache(maxsize=2)
def _parse(path: str, modified: int, size: int) -> Model:
    try:
        model: Model = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {item["name"] for item in model["inputs"]} | set(model["constants"])
        for node in model["nodes"]:
            unknown = [name for name in node["inputs"] if name not in known]
            if unknown or node["op"] not in OPS:
                raise BadModel(f"{path}: node {node['name']} ({node['op']}) cannot be evaluated")
            known.update(node["outputs"])
        lost = [item["name"] for item in model["outputs"] if item["name"] not in known]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{path}: not a whole model of the fake framework ({error})") from error
    if lost:
        raise BadModel(f"{path}: nothing computes the output {', '.join(lost)}")
    for asked in model.get("faults", {}).values():
        faults.check(asked)
    return model


def _evaluate(model: Model, inputs: Arrays, precision: str, variant: str) -> Arrays:
    """Return every value of one run, inputs and constants included."""
    values: Arrays = {}
    for spec in model["inputs"]:
        if spec["name"] not in inputs:
            raise ValueError(f"the input {spec['name']} is missing")
        values[spec["name"]] = _in_precision(np.asarray(inputs[spec["name"]]), precision, weight=False)
    for name, item in model["constants"].items():
        values[name] = _in_precision(_constant(item), precision, weight=True)
    wrong = _wrong(model, "run", variant)
    for node in model["nodes"]:
        operands = [values[name] for name in node["inputs"]]
        values[node["outputs"][0]] = _apply(node, variant, operands, wrong.get(node["name"]), alone=False)
    return values


def _every_run(model: Model, runs: Sequence[Arrays]) -> list[Arrays]:
    return [_evaluate(model, one, "float32", "") for one in runs]


def _in_precision(array: np.ndarray, precision: str, *, weight: bool) -> np.ndarray:
    if array.dtype.kind != "f" or (precision == "float16" and not weight):
        return array
    if precision == "float16":
        return array.astype(np.float16).astype(array.dtype)
    return array.astype(np.float64) if precision == "float64" else array


def _each_run(inputs: Arrays) -> list[Arrays]:
    count = next(iter(inputs.values())).shape[0] if inputs else 1
    return [{name: array[index] for name, array in inputs.items()} for index in range(count)]


def _stack(rows: list[np.ndarray]) -> Any:
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else rows


def _spec(item: Mapping[str, Any]) -> SpecDict:
    shape: list[Any] | None = item.get("shape")
    spec: SpecDict = {"name": item["name"], "dtype": item["dtype"], "shape": shape}
    if "quantization" in item:
        spec["quantization"] = item["quantization"]
    return spec


def _constant(item: Mapping[str, Any]) -> np.ndarray:
    return np.array(item["data"], dtype=item["dtype"]).reshape(item["shape"])


def _rounded(item: Mapping[str, Any]) -> dict[str, Any]:
    array = _constant(item)
    return editing.constant(array.astype(np.float16).astype(array.dtype) if array.dtype.kind == "f" else array)
