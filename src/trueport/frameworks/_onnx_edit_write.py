"""Writes operators into an ONNX model in the words of the model's own opset.

An operator is asked for in today's vocabulary. What it takes as an operand there may be an attribute in an older opset,
and the other way round; an operator that the opset does not know yet is written in older ones (`LOWERED`). Numbers get
the types that the operator's schema demands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union

import numpy as np

from trueport.frameworks import _onnx_file
from trueport.frameworks._base import Unsupported
from trueport.frameworks._onnx_edit import Editor

Operand = Union[str, np.ndarray]
"""The name of a value ("" for one left out), or an array that becomes a constant."""
ALIASES = {("Pad", "value"): "constant_value", ("Upsample", "height_scale"): "scales", ("TopK", "k"): "K"}
"""(operator, name of an attribute) -> its name as an operand."""
VECTORS = ("axes", "starts", "ends", "steps", "split", "pads", "K", "scales", "sizes", "repeats", "shape", "roi")
"""Operands that are lists even where one number is given."""
CONFLICTS = {
    ("Resize", "scales"): "sizes",
    ("Resize", "sizes"): "scales",
    ("Split", "split"): "num_outputs",
    ("Split", "num_outputs"): "split",
}
"""(operator, operand) -> what must go when it is given."""


def schema(edit: Editor, operator: str, domain: str = "") -> Any | None:
    """The operator as the model's opset has it; None when it has none of that name."""
    import onnx

    version = _onnx_file.opsets(edit.model).get("" if domain == "ai.onnx" else domain, 0)
    try:
        return onnx.defs.get_schema(operator, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None


def slot_of(known: Any, operator: str, name: str) -> int | None:
    """The place of the operand that an attribute's name stands for; None when the operator has no such operand."""
    wanted = ALIASES.get((operator, name), name)
    places = {item.name: place for place, item in enumerate(known.inputs)}
    return places.get(wanted) or None  # the data itself is no attribute


def typed(name: str, kind: str, value: Any, old: Any = None) -> Any:
    """An AttributeProto of that kind ("INT", "FLOATS", ..). Raises Unsupported when the value does not fit."""
    from onnx import AttributeProto

    made = AttributeProto(name=name, type=AttributeProto.AttributeType.Value(kind))
    many = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    try:
        if kind == "TENSOR":
            made.t.CopyFrom(_tensor(value, old))
        elif kind == "FLOAT":
            made.f = float(value)
        elif kind == "FLOATS":
            made.floats.extend(float(item) for item in many)
        elif kind == "INT":
            made.i = _whole(value)
        elif kind == "INTS":
            made.ints.extend(_whole(item) for item in many)
        elif kind == "STRING":
            made.s = str(value).encode()
        elif kind == "STRINGS":
            made.strings.extend(str(item).encode() for item in many)
        else:
            raise Unsupported(f"attribute '{name}' is a {kind.lower()}, which cannot be set")
    except (TypeError, ValueError):
        raise Unsupported(f"attribute '{name}' takes {kind.lower()}, not {value!r}") from None
    return made


def _whole(value: Any) -> int:
    if int(value) != value:
        raise ValueError
    return int(value)


def _tensor(value: Any, old: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    if isinstance(value, TensorProto):
        return value
    array = np.asarray(value)
    if old is not None and old.HasField("t"):
        array = array.astype(helper.tensor_dtype_to_np_dtype(old.t.data_type))
        count = int(np.prod(old.t.dims, dtype=np.int64))
        array = array.reshape(list(old.t.dims)) if array.size == count else array
    else:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    return numpy_helper.from_array(np.array(array, order="C"), old.t.name if old is not None else "")


def attribute(edit: Editor, node: Any, name: str, value: Any) -> Any:
    """The AttributeProto that gives a node's attribute a value, of the type that its operator demands."""
    from onnx import AttributeProto, helper

    known = schema(edit, node.op_type, node.domain)
    old = next((item for item in node.attribute if item.name == name), None)
    if known is not None:
        if name not in known.attributes:
            raise Unsupported(
                f"operator '{node.op_type}' has no attribute '{name}' in the model's opset "
                f"{_onnx_file.opsets(edit.model).get(node.domain, 0)}"
            )
        return typed(name, known.attributes[name].type.name, value, old)
    if old is not None:
        return typed(name, AttributeProto.AttributeType.Name(old.type), value, old)
    return helper.make_attribute(name, value)


def replace_attribute(node: Any, name: str, made: Any | None) -> None:
    """Put an AttributeProto at the place of the old one of that name, or behind the others; None takes it away."""
    places = [place for place, item in enumerate(node.attribute) if item.name == name]
    if made is not None and places:
        node.attribute[places[0]].CopyFrom(made)
    elif made is not None:
        node.attribute.append(made)
    elif places:
        del node.attribute[places[0]]


def operand_dtype(edit: Editor, known: Any, slot: int, operands: Sequence[Operand], value: np.ndarray) -> np.dtype[Any]:
    """The dtype that a constant at `slot` must have: what the schema says, or what the operands beside it hold."""
    from onnx import helper

    formal = known.inputs[min(slot, len(known.inputs) - 1)] if known is not None and known.inputs else None
    fallback = np.dtype({"f": np.float32, "b": np.bool_}.get(value.dtype.kind, np.int64))
    if formal is None:
        kinds = [edit.type(item) for item in operands if isinstance(item, str) and item]
        floating = [np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for kind in kinds if kind in (1, 10, 11)]
        return floating[0] if floating and value.dtype.kind in "fiu" else fallback
    allowed = _dtypes(known, formal.type_str)
    for place, item in enumerate(operands):
        beside = known.inputs[min(place, len(known.inputs) - 1)]
        if beside.type_str == formal.type_str and isinstance(item, str) and item and edit.type(item):
            dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(edit.type(item)))
            return dtype
    return fallback if fallback in allowed or not allowed else allowed[0]


def _dtypes(known: Any, text: str) -> list[np.dtype[Any]]:
    """The dtypes that a type in a schema ("T", "tensor(int64)") admits, as far as NumPy has them."""
    names = {"float": "float32", "double": "float64", "string": "object"}
    allowed = next((item.allowed_type_strs for item in known.type_constraints if item.type_param_str == text), [text])
    plain = [item[7:-1] for item in allowed if item.startswith("tensor(")]
    found = []
    for name in plain:
        try:
            found.append(np.dtype(names.get(name, name)))
        except TypeError:  # bfloat16 and the like
            continue
    return found


def fit(edit: Editor, known: Any, operator: str, slot: int, operands: Sequence[Operand], value: Any) -> np.ndarray:
    """Give an array the dtype and the rank that operand `slot` must have. Raises Unsupported where that loses fractions."""
    array = np.asarray(value)
    dtype = operand_dtype(edit, known, slot, operands, array)
    name = _operand_name(known, slot)
    if dtype.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise Unsupported(f"operand '{name}' of '{operator}' takes whole numbers here")
    made = np.array(array, dtype)
    return made.reshape(-1) if name in VECTORS and made.ndim == 0 else made


def _operand_name(known: Any, slot: int) -> str:
    return (
        str(known.inputs[min(slot, len(known.inputs) - 1)].name) if known is not None and known.inputs else "constant"
    )


def store(edit: Editor, known: Any, operator: str, slot: int, operands: Sequence[Operand], value: Any) -> str:
    """Make a constant for operand `slot` and return its name."""
    array = fit(edit, known, operator, slot, operands, value)
    return edit.constant(array, f"{operator.lower()}_{_operand_name(known, slot)}")


def write(
    edit: Editor,
    operator: str,
    operands: Sequence[Operand],
    attributes: Mapping[str, Any],
    outputs: Sequence[str],
    name: str = "",
) -> list[Any]:
    """The nodes that compute `outputs` by an operator of today's vocabulary ("domain::Name" for another domain's).

    The last one is called `name` and gives `outputs`. Raises Unsupported when the model's opset cannot say it.
    """
    from onnx import helper

    domain, _, plain = operator.rpartition("::")
    known = schema(edit, plain, domain)
    slots, kept = list(operands), dict(attributes)
    if not domain and plain in SOFTMAX and edit.opset() < _ONE_AXIS:
        kept["axis"] = _positive(edit, operands[0], int(kept.get("axis", -1)))
    if not domain and (known is None or _flattens(edit, plain, operands, kept)):
        return _lowered(edit, plain, operands, attributes, outputs, name)
    if known is not None:
        _to_operands(known, plain, slots, kept)
        _to_attributes(known, plain, slots, kept)
    names = [
        item if isinstance(item, str) else store(edit, known, plain, place, slots, item)
        for place, item in enumerate(slots)
    ]
    made = helper.make_node(plain, names, list(outputs), name=name or edit.fresh(plain), domain=domain)
    made.attribute.extend(attribute(edit, made, key, kept[key]) for key in kept if kept[key] is not None)
    if known is not None and not known.min_input <= len(names) <= known.max_input:
        raise Unsupported(f"operator '{plain}' does not take {len(names)} operands in opset {edit.opset()}")
    _remember(edit, known, made)
    return [made]


def _to_operands(known: Any, operator: str, slots: list[Operand], kept: dict[str, Any]) -> None:
    """Turn attributes that are operands in this opset into constants."""
    for name in [name for name in kept if name not in known.attributes]:
        slot = slot_of(known, operator, name)
        if slot is not None and kept[name] is not None:
            slots += [""] * (slot + 1 - len(slots))
            slots[slot] = np.asarray(kept.pop(name))
        elif slot is not None or kept[name] is None:
            kept.pop(name)


def _to_attributes(known: Any, operator: str, slots: list[Operand], kept: dict[str, Any]) -> None:
    """Turn constants that are attributes in this opset into attributes, under their names in the newest one."""
    import onnx

    newest = onnx.defs.get_schema(operator)
    back = {(key[0], value): key[1] for key, value in ALIASES.items()}
    for place in range(len(slots) - 1, len(known.inputs) - 1, -1):
        item = slots[place]
        variadic = known.max_input > len(known.inputs)
        if variadic or place >= len(newest.inputs):
            return
        name = back.get((operator, newest.inputs[place].name), newest.inputs[place].name)
        if (isinstance(item, str) and item) or name not in known.attributes:
            raise Unsupported(f"operator '{operator}' takes no operand '{name}' in this opset")
        if not isinstance(item, str):
            kept[name] = item.tolist()
        del slots[place]


def _remember(edit: Editor, known: Any, made: Any) -> None:
    """Note the element type of what a new node makes, for the constants of the nodes behind it."""
    from onnx import TensorProto

    if known is None or not known.outputs:
        return
    kind = 0
    text = known.outputs[0].type_str
    if made.op_type == "Cast":
        kind = next(item.i for item in made.attribute if item.name == "to")
    elif text.startswith("tensor("):
        kind = getattr(TensorProto, text[7:-1].upper(), 0)
    else:
        beside = [
            name
            for place, name in enumerate(made.input)
            if known.inputs[min(place, len(known.inputs) - 1)].type_str == text and name
        ]
        kind = next((edit.type(name) for name in beside if edit.type(name)), 0)
    if kind:
        edit.note_type(made.output[0], kind)


# -- operators that an older opset does not have ------------------------------------------------------------------


class Builder:
    """Writes several nodes one after the other; each call returns the name of the result."""

    def __init__(self, edit: Editor) -> None:
        self.edit = edit
        self.nodes: list[Any] = []

    def __call__(self, operator: str, *operands: Any, **attributes: Any) -> str:
        out = self.edit.fresh(f"{operator.lower()}_out")
        given = [item if isinstance(item, (str, np.ndarray)) else np.asarray(item) for item in operands]
        self.nodes += write(self.edit, operator, given, attributes, [out])
        return out


Lowering = Callable[[Builder, Sequence[Operand], Mapping[str, Any]], None]


def _lowered(
    edit: Editor,
    operator: str,
    operands: Sequence[Operand],
    attributes: Mapping[str, Any],
    outputs: Sequence[str],
    name: str,
) -> list[Any]:
    if operator not in LOWERED:
        try:
            since = min(item.since_version for item in _versions(operator))
        except ValueError:
            raise Unsupported(f"ONNX has no operator '{operator}'") from None
        raise Unsupported(f"operator '{operator}' needs opset {since}, and the model has opset {edit.opset()}")
    build = Builder(edit)
    LOWERED[operator](build, operands, attributes)
    last = build.nodes[-1]
    last.output[0] = outputs[0]
    last.name = name or last.name
    return build.nodes


def _versions(operator: str) -> list[Any]:
    import onnx

    return [item for item in onnx.defs.get_all_schemas_with_history() if item.name == operator and item.domain == ""]


def _hard_swish(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    build("Mul", operands[0], build("HardSigmoid", operands[0], alpha=1 / 6, beta=0.5))


def _mish(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    build("Mul", operands[0], build("Tanh", build("Softplus", operands[0])))


def _swish(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    alpha = float(attributes.get("alpha", 1.0))
    build("Mul", operands[0], build("Sigmoid", operands[0] if alpha == 1 else build("Mul", operands[0], alpha)))


def _celu(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    alpha = float(attributes.get("alpha", 1.0))
    build("Mul", build("Elu", build("Div", operands[0], alpha)), alpha)


def _gelu(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    x = operands[0]
    if attributes.get("approximate", "none") == "tanh":
        cubed = build("Mul", build("Mul", x, x), x)
        inner = build("Mul", build("Add", x, build("Mul", cubed, 0.044715)), float(np.sqrt(2 / np.pi)))
        bent = build("Tanh", inner)
    else:
        bent = build("Erf", build("Div", x, float(np.sqrt(2))))
    build("Mul", build("Mul", x, build("Add", bent, 1.0)), 0.5)


SOFTMAX = ("Softmax", "LogSoftmax")
_ONE_AXIS = 13
"""Opset since which these work along one axis; before, they flatten all axes behind theirs."""


def _flattens(edit: Editor, operator: str, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> bool:
    """Whether the model's opset means something else by a softmax than today's, for this axis."""
    if operator not in SOFTMAX or edit.opset() >= _ONE_AXIS:
        return False
    rank = edit.rank(operands[0]) if isinstance(operands[0], str) else operands[0].ndim
    return attributes["axis"] not in (-1, rank - 1 if rank > 0 else -1)


def _softmax(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    """Softmax along one axis, where the opset's own flattens all axes behind it."""
    axis = _positive(build.edit, operands[0], int(attributes.get("axis", -1)))
    powers = build("Exp", build("Sub", operands[0], build("ReduceMax", operands[0], axes=[axis], keepdims=1)))
    build("Div", powers, build("ReduceSum", powers, axes=[axis], keepdims=1))


def _log_softmax(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    axis = _positive(build.edit, operands[0], int(attributes.get("axis", -1)))
    moved = build("Sub", operands[0], build("ReduceMax", operands[0], axes=[axis], keepdims=1))
    build("Sub", moved, build("Log", build("ReduceSum", build("Exp", moved), axes=[axis], keepdims=1)))


def _positive(edit: Editor, value: Operand, axis: int) -> int:
    """The axis counted from the front where the rank is known: opsets before 11 know no other."""
    rank = edit.rank(value) if isinstance(value, str) else value.ndim
    return axis + rank if axis < 0 <= rank else axis


def _layer_normalization(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
    x = operands[0]
    axis = int(attributes.get("axis", -1))
    rank = build.edit.rank(x) if isinstance(x, str) else x.ndim
    if axis >= 0 and rank < 0:
        raise Unsupported("the rank of what LayerNormalization would read is not known")
    axes = [_positive(build.edit, x, place) for place in range(axis - rank if axis >= 0 else axis, 0)]
    moved = build("Sub", x, build("ReduceMean", x, axes=axes, keepdims=1))
    variance = build("ReduceMean", build("Mul", moved, moved), axes=axes, keepdims=1)
    scale = build("Sqrt", build("Add", variance, float(attributes.get("epsilon", 1e-5))))
    normal = build("Div", moved, scale)
    for operator, operand in zip(("Mul", "Add"), operands[1:]):
        if isinstance(operand, np.ndarray) or operand:
            normal = build(operator, normal, operand)


def _greater_or_equal(operator: str) -> Lowering:
    def lowering(build: Builder, operands: Sequence[Operand], attributes: Mapping[str, Any]) -> None:
        build("Not", build(operator, operands[0], operands[1]))

    return lowering


LOWERED: dict[str, Lowering] = {
    "HardSwish": _hard_swish,
    "Mish": _mish,
    "Swish": _swish,
    "Celu": _celu,
    "Gelu": _gelu,
    "LayerNormalization": _layer_normalization,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "GreaterOrEqual": _greater_or_equal("Less"),
    "LessOrEqual": _greater_or_equal("Greater"),
}
"""Operator -> how older operators compute it."""
