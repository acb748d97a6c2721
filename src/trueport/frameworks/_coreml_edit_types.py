"""Works out the types of a changed ML program anew, with coremltools' own rules, and fills in arguments left at defaults.

Every operation of the main block is built once in memory from its arguments; what coremltools refuses there, Core ML
would refuse too. Large constants take part by type and shape alone. What has blocks, a state or no rule keeps the types
that the file records.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks import _coreml_read as reading
from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_editor import Editor
from trueport.frameworks._coreml_messages import is_constant, reads

LARGE = 4096
"""Stored arrays of more elements are not read: what they hold decides no type."""


def settle(editor: Editor) -> None:
    """Write the types of all results, and the default arguments of new operations. Raises Unsupported with coremltools' reason."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Placeholder

    known = {item.name: item.type for item in editor.function.inputs}
    opaque = [item for item in editor.operations if _opaque(item)]
    for operation in opaque:
        known.update((output.name, output.type) for output in operation.outputs)
    symbols: dict[int, Any] = {}
    inputs = {}
    for name, message in known.items():
        declared = reading.read_type(message)
        if declared.shape is None or declared.dtype in ("list", "state", "tuple", "dict", "str"):
            continue
        inputs[name] = Placeholder(
            sym_shape=tuple(_size(size, axis, symbols) for axis, size in enumerate(declared.shape)),
            dtype=_builtin(declared.dtype),
            name=name,
        )
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget

    with Function(inputs, opset_version=AvailableTarget(editor.spec.specificationVersion)):
        values = {name: item.outputs[0] for name, item in inputs.items()}
        for operation in list(editor.operations):
            if any(operation is item for item in opaque):
                continue
            if is_constant(operation):
                values.update(_constant(editor, operation, mb))
            elif all(name in values for name in reads(operation)):
                _settle_one(editor, operation, values, mb)
            elif operation.outputs[0].name in editor.fresh_ones:
                raise Unsupported(f"'{operation.outputs[0].name}' reads a value whose type is not known")
    _settle_outputs(editor)


def _opaque(operation: Any) -> bool:
    return bool(operation.blocks or not operation.outputs or operation.type in ("read_state", "custom_layer")) or any(
        output.type.WhichOneof("type") not in ("tensorType", None) for output in operation.outputs
    )


def _size(size: Any, axis: int, symbols: dict[int, Any]) -> Any:
    """A fixed size, or one symbol for all open sizes at an axis: inputs grow together."""
    from coremltools.converters.mil.mil import get_new_symbol

    if isinstance(size, int):
        return size
    if axis not in symbols:
        symbols[axis] = get_new_symbol()
    return symbols[axis]


def _builtin(dtype: str) -> Any:
    from coremltools.converters.mil.mil import types

    return types.string_to_builtin({"float16": "fp16", "float32": "fp32"}.get(dtype, dtype))


def _constant(editor: Editor, operation: Any, mb: Any) -> dict[str, Any]:
    found = {}
    for output in operation.outputs:
        declared = reading.read_type(output.type)
        shape = tuple(int(size or 0) for size in declared.shape or ())
        if operation.type != "const" or int(np.prod(shape, dtype=np.int64)) > LARGE:
            value: Any = np.zeros(shape, declared.dtype if declared.dtype in ("float16", "float32") else np.int32)
        else:
            value = editor.array(output.name)
        found[output.name] = mb.const(val=_plain(value, declared.dtype), name=output.name)
    return found


def _plain(value: Any, dtype: str) -> Any:
    """A value as coremltools takes it: scalars as NumPy's or Python's scalars."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 0:
        return bool(value) if dtype == "bool" else value[()]
    return np.array(value)


def _settle_one(editor: Editor, operation: Any, values: dict[str, Any], mb: Any) -> None:
    from coremltools.converters.mil.mil.input_type import TupleInputType
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    name = operation.outputs[0].name
    try:
        rule = SSAOpRegistry._get_core_op_cls(operation.type)
        arguments = {}
        for argument, bindings in operation.inputs.items():
            bound = [_operand(editor, one, values) for one in bindings.arguments]
            many = isinstance(rule.input_spec.input_types.get(argument), TupleInputType)
            arguments[argument] = bound if many or len(bound) != 1 else bound[0]
        made = getattr(mb, operation.type)(name=name, **arguments)
    except Exception as error:  # whatever coremltools says of arguments that do not fit
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Unsupported(f"'{name}' ({operation.type}) cannot stand there: {text[:300]}") from error
    results = list(made) if isinstance(made, (tuple, list)) else [made]
    for output, result in zip(operation.outputs, results):
        if result.sym_type is not None:
            _write_type(editor, output, result)
        values[output.name] = result
    if name in editor.fresh_ones and results:
        _fill_in(editor, operation, results[0].op)


def _operand(editor: Editor, binding: Any, values: dict[str, Any]) -> Any:
    if binding.WhichOneof("binding") == "name":
        return values[binding.name]
    declared = reading.read_type(binding.value.type)
    return _plain(editor.value_of(binding.value), declared.dtype)


def _write_type(editor: Editor, output: Any, result: Any) -> None:
    """Record what a result is, in the words of the file."""
    from coremltools.converters.mil.backend.mil.helper import create_valuetype_tensor, types_to_proto_primitive
    from coremltools.converters.mil.mil import types

    kind = result.sym_type
    if types.is_tensor(kind):
        made = create_valuetype_tensor(kind.get_shape(), types_to_proto_primitive(kind.get_primitive()))
    elif types.is_scalar(kind) or types.is_str(kind):
        made = create_valuetype_tensor((), types_to_proto_primitive(kind))
    else:
        return
    data = made.SerializeToString(deterministic=True)
    if data != output.type.SerializeToString(deterministic=True):
        output.type.ParseFromString(data)
    editor.note(output.name, reading.read_type(output.type))


def _fill_in(editor: Editor, operation: Any, made: Any) -> None:
    """Give a new operation the arguments that it leaves at their defaults: a program states all of them."""
    for argument, variable in made.inputs.items():
        if argument in operation.inputs or argument.startswith("_") or variable is None:
            continue
        if isinstance(variable, (list, tuple)) or variable.val is None:
            continue
        name = editor.constant(np.asarray(variable.val) if not isinstance(variable.val, str) else variable.val,
                               f"{operation.outputs[0].name}_{argument}", _dtype(variable))  # fmt: skip
        operation.inputs[argument].arguments.add(name=name)


def _dtype(variable: Any) -> str:
    value = variable.val
    if isinstance(value, str):
        return "str"
    return {"float64": "float32", "int64": "int32"}.get(np.asarray(value).dtype.name, np.asarray(value).dtype.name)


def _settle_outputs(editor: Editor) -> None:
    """Bring the description of the model's outputs up to date: type and, where it is fixed, shape."""
    from coremltools.proto import FeatureTypes_pb2

    kinds = FeatureTypes_pb2.ArrayFeatureType
    numbers = {"float16": kinds.FLOAT16, "float32": kinds.FLOAT32, "float64": kinds.DOUBLE, "int32": kinds.INT32}
    for item in editor.spec.description.output:
        declared = editor.type(item.name)
        if item.name not in editor.outputs or item.type.WhichOneof("Type") != "multiArrayType":
            continue
        array = item.type.multiArrayType
        if declared.dtype in numbers:
            array.dataType = numbers[declared.dtype]
        fixed = [size for size in declared.shape or () if isinstance(size, int)]
        if list(array.shape):
            del array.shape[:]
            if len(fixed) == len(declared.shape or ()):
                array.shape.extend(fixed)
