"""Attributes of an exported program's operators, set under the names that `graph` shows: ONNX's, and PyTorch's own.

Most are one argument under another name. Where an attribute is spread over several arguments, or the operator has none
for it (uneven pads, the bounds of a relu6), the operator is written anew from all its attributes.
"""

from __future__ import annotations

from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_attributes import attributes
from trueport.frameworks._torch_editor import Editor
from trueport.frameworks._torch_emit import MAKERS, emit
from trueport.frameworks._torch_emit_values import Place, aten, dtype_of, sides
from trueport.frameworks._torch_ops import onnx_name
from trueport.frameworks._torch_values import native_name

_ARGUMENTS = {
    "strides": ("stride",),
    "dilations": ("dilation",),
    "group": ("groups",),
    "kernel_shape": ("kernel_size",),
    "epsilon": ("eps",),
    "alpha": ("alpha", "negative_slope", "threshold"),
    "keepdims": ("keepdim",),
    "min": ("min", "min_val"),
    "max": ("max", "max_val"),
    "blocksize": ("upscale_factor", "downscale_factor"),
    "k": ("diagonal", "k"),
    "to": ("dtype",),
    "axis": ("dim", "start_dim"),
    "axes": ("dim", "dims"),
    "layout": ("batch_first",),
    "starts": ("start",),
    "ends": ("end",),
    "steps": ("step",),
    "indices": ("index",),
}
"""Attribute -> arguments of PyTorch's functions that say the same; others have the same name."""
_FIXED = {
    "direction": "the number of directions is the number of its weights",
    "hidden_size": "it is the size of its weights",
    "linear_before_reset": "PyTorch knows one way to compute a GRU",
    "auto_pad": "",
}
"""Attributes that no argument says, and why they cannot be set."""
_ANEW = frozenset(
    [("Transpose", "perm"), ("Reshape", "shape"), ("Expand", "shape"), ("Conv", "auto_pad"), ("DepthToSpace", "mode")]
    + [(operator, "auto_pad") for operator in ("MaxPool", "AveragePool")]
)
"""(operator, attribute) for which the operator is always written anew."""


def set_attribute(editor: Editor, node: Any, name: str, value: Any) -> None:
    """Set one attribute, None for its default. Raises Unsupported, with the reason, where that cannot be written."""
    operator = onnx_name(node)
    handler = _HANDLERS.get((operator, name))
    if handler is not None:
        handler(editor, node, value)
    elif (operator, name) in _ANEW:
        if attributes(node).get(name) != value:  # a flatten that has the shape already stays one
            rewrite(editor, node, {name: value})
    elif not _set_argument(editor, node, name, value):
        known = attributes(node)
        if _FIXED.get(name):
            raise Unsupported(f"{name} cannot be set: {_FIXED[name]}")
        if name not in known and not _speaks(operator, name):
            raise Unsupported(f"the operator {operator} has no attribute '{name}'; it has {', '.join(known) or 'none'}")
        rewrite(editor, node, {name: value})


_WRITTEN = {
    "Clip": {"min", "max"},
    "HardSigmoid": {"alpha", "beta"},
    "Gemm": {"alpha", "beta", "transA", "transB"},
    "Pad": {"pads", "mode", "value"},
    "Resize": {"mode", "sizes", "scales", "coordinate_transformation_mode", "nearest_mode"},
}
_REDUCED = {"axes", "keepdims"}


def _speaks(operator: str, name: str) -> bool:
    """Whether the operator has the attribute in ONNX, and is written with it, though the native one lacks it."""
    return name in _WRITTEN.get(operator, _REDUCED if operator.startswith("Reduce") else ())


def rewrite(editor: Editor, node: Any, changed: dict[str, Any]) -> None:
    """Write the operator anew from its attributes, some of them changed (None: taken away)."""
    operator = onnx_name(node)
    if operator not in MAKERS:
        raise Unsupported(f"'{next(iter(changed))}' of {native_name(node)} is no argument that can be set")
    values = {**attributes(node), **changed}
    values = {name: value for name, value in values.items() if value is not None}
    call = emit(Place(editor, node, node.name), operator, editor.operands(node), values)
    editor.replace(node, *call)


def _set_argument(editor: Editor, node: Any, name: str, value: Any) -> bool:
    """Set the argument that says the attribute; False where the function has none, or it does not take such a value."""
    operator = onnx_name(node)
    for one in editor.schema(node):
        if one.name not in _ARGUMENTS.get(name, (name,)):
            continue
        if value is None:
            if not one.has_default_value():
                return False
            editor.set_argument(node, one.name, one.default_value)
            return True
        if hasattr(editor.argument(node, one.name), "all_input_nodes"):
            raise Unsupported(f"'{name}' is computed by the model")
        if operator == "Pad" and one.name == "mode":
            return False
        editor.set_argument(node, one.name, _typed(one, name, value))
        return True
    return False


def _typed(argument: Any, name: str, value: Any) -> Any:
    """The value as the argument's type wants it."""
    kind = str(argument.type)
    listed = list(value) if isinstance(value, (tuple, list)) else [value]
    if argument.name == "dtype":
        return dtype_of(value)
    if "List[int]" in kind or "List[SymInt]" in kind:
        return [int(one) for one in listed]
    if "List[float]" in kind:
        return [float(one) for one in listed]
    if len(listed) != 1:
        raise Unsupported(f"'{name}' takes one number in {argument.name}, not {len(listed)}")
    if "bool" in kind:
        return bool(listed[0])
    if kind in ("int", "SymInt", "Optional[int]", "Optional[SymInt]"):
        return int(listed[0])
    if kind in ("float", "Optional[float]"):
        return float(listed[0])
    return listed[0]


# -- attributes that are more than one argument ---------------------------------------------------------------------


def _window_pads(editor: Editor, node: Any, value: Any) -> None:
    """Even pads are the argument `padding`; for uneven ones the operator is written anew, with a Pad in front."""
    pads = [int(one) for one in value] if value is not None else []
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        if "pads" not in attributes(node):
            rewrite(editor, node, {"auto_pad": None, "pads": pads})
        else:
            rewrite(editor, node, {"pads": pads})
        return
    editor.set_argument(node, "padding", pads[:half] or 0)


def _pad_pads(editor: Editor, node: Any, value: Any) -> None:
    pads = [int(one) for one in value]
    rank = len(pads) // 2
    name = next((one.name for one in editor.schema(node) if one.name in ("pad", "padding")), "")
    new = sides(pads[:rank], pads[rank:])
    given = len(editor.argument(node, name)) if name else 0
    if not name or any(new[given:]):
        rewrite(editor, node, {"pads": pads})
    else:
        editor.set_argument(node, name, new[:given])


def _layer_axis(editor: Editor, node: Any, value: Any) -> None:
    sizes = editor.shape(editor.operands(node)[0])[int(value) :]
    if min(sizes) < 0:
        raise Unsupported("a normalisation over an axis of open size cannot be written in PyTorch")
    editor.set_argument(node, "normalized_shape", sizes)


def _resized(name: str) -> Callable[[Editor, Any, Any], None]:
    """Size, factors and mode are told apart by function: write it anew, with the size as the node has it."""

    def change(editor: Editor, node: Any, value: Any) -> None:
        changed: dict[str, Any] = {name: value}
        given = {one.name for one in editor.schema(node)}
        if name in ("sizes", "scales"):
            changed["scales" if name == "sizes" else "sizes"] = None
        elif "scale_factors" in given and editor.argument(node, "scale_factors") is not None:
            changed.update(scales=list(editor.argument(node, "scale_factors")), sizes=None)
        if name == "align_corners":
            changed = {**changed, "coordinate_transformation_mode": "align_corners" if value else "half_pixel"}
        if name == "mode" and value == "nearest":
            changed.setdefault("coordinate_transformation_mode", "asymmetric")
            changed.setdefault("nearest_mode", "floor")
        elif name == "mode" and attributes(node).get("coordinate_transformation_mode") == "asymmetric":
            changed.setdefault("coordinate_transformation_mode", "half_pixel")
        rewrite(editor, node, changed)

    return change


def _reversed(editor: Editor, node: Any, value: Any) -> None:
    """Whether the number comes first in a difference: rsub for sub."""
    left, right = editor.operand(node, 0), editor.operand(node, 1)
    now = native_name(node) == "aten.rsub"
    if bool(value) != now:
        both = hasattr(right, "op")
        target = aten(f"{'sub' if now else 'rsub'}.{'Tensor' if both else 'Scalar'}")
        editor.replace(node, target, (left, right), dict(node.kwargs))


def _bound(name: str) -> Callable[[Editor, Any, Any], None]:
    def change(editor: Editor, node: Any, value: Any) -> None:
        if native_name(node) == "aten.clamp" and str(node.target).endswith("default"):
            editor.set_argument(node, name, value)
        else:
            rewrite(editor, node, {name: value})

    return change


def _split(editor: Editor, node: Any, value: Any) -> None:
    parts = [int(one) for one in value]
    if len(parts) != len(node.meta["val"]):
        raise Unsupported(f"it gives {len(node.meta['val'])} parts, and not {len(parts)}")
    axis = attributes(node)["axis"]
    editor.replace(node, aten("split_with_sizes.default"), (editor.operands(node)[0], parts, axis))


_HANDLERS: dict[tuple[str, str], Callable[[Editor, Any, Any], None]] = {
    **{(operator, "pads"): _window_pads for operator in ("Conv", "ConvTranspose", "MaxPool", "AveragePool")},
    ("Pad", "pads"): _pad_pads,
    ("LayerNormalization", "axis"): _layer_axis,
    **{
        ("Resize", name): _resized(name)
        for name in ("mode", "sizes", "scales", "coordinate_transformation_mode", "nearest_mode", "align_corners")
    },
    ("Sub", "reversed"): _reversed,
    ("Clip", "min"): _bound("min"),
    ("Clip", "max"): _bound("max"),
    ("Split", "split"): _split,
}
"""(operator, attribute) -> what sets it."""
