"""Writes changes into a TVM file: the function is built anew operator by operator, so that every type follows.

A weight that others read too gets a copy of its own; an attribute is set under the name that `graph` shows for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _tvm_file, _tvm_ops
from trueport.frameworks._base import Arrays, EditDict, SpecDict, Unsupported
from trueport.frameworks._tvm_view import Step, View, operator_name, shape_of, type_name


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> list[str]:
    """Write a copy of the model at `out` with the edits applied, in order. Returns notes. Raises Unsupported."""
    model = _tvm_file.read(path, trust=True)
    for edit in edits:
        kind = edit["kind"]
        if kind not in _KINDS:
            raise Unsupported(f"the edit '{kind}' cannot be written into a TVM module")
        model = _KINDS[kind](model, edit, arrays)
    _tvm_file.write(out, model.module, model.inputs, model.outputs, model.arrays)
    return []


def _set_parameter(model: _tvm_file.Model, edit: EditDict, arrays: Arrays) -> _tvm_file.Model:
    """New values for a constant that the node reads, in the type that it has."""
    from tvm import relax

    view = View(model)
    step = _step(view, edit["node"])
    name = edit["parameter"]
    number = view.number_of.get(name)
    if number is None or number not in view.constants or number not in step.reads:
        raise Unsupported(f"'{edit['node']}' reads no constant '{name}'")
    old = view.constants[number]
    new = np.asarray(arrays[edit["array"]]).astype(old.dtype)
    readers = [one for one in view.steps if number in one.reads]
    if name in model.arrays and len(readers) == 1 and new.shape == old.shape:
        return _with(model, arrays={**model.arrays, name: new})
    if name in model.arrays:
        fresh = _unused_name(f"{name}_of_{edit['node']}", view)
        parameter = relax.Var(fresh, relax.TensorType(list(new.shape), str(new.dtype)))
        place = list(model.arrays).index(name) + len(model.inputs)
        old_variable = view.function.params[place]
        call = _replaced(step.call, lambda value: parameter if _same(value, old_variable) else value)
        return _rebuilt(model, step, call, extra=[parameter], arrays={**model.arrays, fresh: new})
    constant = relax.const(new)
    call = _replaced(step.call, lambda value: constant if view.tree(value) == number else value)
    return _rebuilt(model, step, call)


def _unused_name(name: str, view: View) -> str:
    while name in view.number_of:
        name += "_"
    return name


def _same(value: Any, variable: Any) -> bool:
    return type(value).__name__ in ("Var", "DataflowVar") and bool(value.same_as(variable))


def _set_attribute(model: _tvm_file.Model, edit: EditDict, arrays: Arrays) -> _tvm_file.Model:
    """A new value for an attribute, under the name that `graph` shows; None is refused: TVM's operators have all of theirs."""
    from tvm import relax

    view = View(model)
    step = _step(view, edit["node"])
    native, shown, value = operator_name(step.call), edit["attribute"], edit["value"]
    if value is None:
        raise Unsupported(f"TVM's {native} always has '{shown}'; it cannot be taken away")
    place = next((p for p, name in _tvm_ops.OPERANDS.get(native, {}).items() if name == shown), None)
    if place is not None and place < len(step.call.args):
        operands = list(step.call.args)
        operands[place] = _like(operands[place], value)
        call = relax.Call(step.call.op, operands, step.call.attrs, list(step.call.ty_args))
        return _rebuilt(model, step, call)
    field, value = _field(native, shown, value, step.call.attrs)
    call = relax.Call(
        step.call.op, list(step.call.args), _changed(step.call.attrs, field, value), list(step.call.ty_args)
    )
    return _rebuilt(model, step, call)


def _field(native: str, shown: str, value: Any, attrs: Any) -> tuple[str, Any]:
    """TVM's own field and value for an attribute as it is shown."""
    if native == "nn.pad" and shown == "pads":
        half = len(value) // 2
        return "pad_width", [size for pair in zip(value[:half], value[half:]) for size in pair]
    fields = _tvm_ops.fields_of(attrs)
    found = next((field for field in fields if _tvm_ops.shown_name(native, field) == shown), None)
    if found is None:
        raise Unsupported(f"TVM's {native} has no attribute '{shown}'; it has {', '.join(fields) or 'none'}")
    return found, _tvm_ops.native_word(native, shown, value)


def _changed(attrs: Any, field: str, value: Any) -> Any:
    """The attribute object with one field changed, of the type that the field has."""
    import tvm

    fields = {name: getattr(attrs, name) for name in _tvm_ops.fields_of(attrs)}
    fields[field] = _like(fields[field], value)
    made = tvm.ir.make_node(type(attrs).__tvm_ffi_type_info__.type_key, **fields)
    for name, wanted in fields.items():
        if _tvm_ops.plain(getattr(made, name)) != _tvm_ops.plain(wanted):
            raise Unsupported(f"TVM does not take {value!r} for its attribute '{field}'")
    return made


def _like(old: Any, value: Any) -> Any:
    """A Python value in the form of the one that it replaces."""
    import tvm
    from tvm import relax

    kind = type(old).__name__
    if kind in ("IntImm", "FloatImm"):
        dtype = str(getattr(old, "dtype", None) or ("int64" if kind == "IntImm" else "float64"))
        whole = isinstance(value, int) or float(value).is_integer()
        return tvm.tirx.IntImm(dtype, int(value)) if kind == "IntImm" and whole else tvm.tirx.FloatImm("float32", value)
    if kind == "ShapeExpr":
        return relax.ShapeExpr(list(value))
    if kind == "Tuple":
        return relax.Tuple([_like(old.fields[0], item) for item in value])
    if kind == "Array":
        first = old[0] if len(old) else 0
        return [_like(first, item) for item in value]
    return type(old)(value) if isinstance(old, (bool, int, float, str)) else value


# -- building anew


def _step(view: View, node: str) -> Step:
    found = next((step for step in view.steps if view.node(step)["name"] == node), None)
    if found is None:
        raise Unsupported(f"the model has no operator '{node}'")
    if type(found.call).__name__ == "If":
        raise Unsupported("a conditional cannot be edited")
    return found


def _with(model: _tvm_file.Model, **changes: Any) -> _tvm_file.Model:
    facts = {**model.facts, **changes.get("facts", {})}
    return _tvm_file.Model(
        model.path, facts, changes.get("module", model.module), changes.get("arrays", model.arrays), model.foreign
    )


def _replaced(value: Any, replace: Any) -> Any:
    """An expression with its leaves replaced."""
    from tvm import relax

    if type(value).__name__ == "Call":
        return relax.Call(value.op, [_replaced(item, replace) for item in value.args], value.attrs, list(value.ty_args))
    if type(value).__name__ == "Tuple":
        return relax.Tuple([_replaced(item, replace) for item in value.fields])
    if type(value).__name__ == "TupleGetItem":
        return relax.TupleGetItem(_replaced(value.tuple_value, replace), value.index)
    return replace(value)


def _rebuilt(
    model: _tvm_file.Model, step: Step, call: Any, *, extra: Sequence[Any] = (), arrays: Any = None
) -> _tvm_file.Model:
    """The model with the call of one step changed and all types worked out again."""
    import tvm
    from tvm import relax

    main = model.module["main"]
    if len(main.body.blocks) != 1:
        raise Unsupported("a TVM module with conditionals cannot be edited this way")
    env: dict[Any, Any] = {}
    builder = relax.BlockBuilder()

    def known(value: Any) -> Any:
        return env.get(value, value) if type(value).__name__ in ("Var", "DataflowVar") else value

    try:
        with builder.function("main", [*main.params, *extra]):
            with builder.dataflow():
                bindings = main.body.blocks[0].bindings
                for binding in bindings[:-1]:
                    value = call if binding.var.same_as(step.variable) else binding.value
                    env[binding.var] = builder.emit(_replaced(value, known), name_hint=binding.var.name)
                result = _last(builder, bindings[-1], main.body.body, step, call, known)
            builder.emit_func_output(result)
        made = builder.get()["main"]
    except Unsupported:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Unsupported(f"TVM does not take this change: {said}") from error
    made = made.with_attr("num_input", len(model.inputs)).with_attr("global_symbol", "main")
    others = {k: v for k, v in model.module.functions.items() if k.name_hint != "main"}
    module = tvm.IRModule({**others, tvm.ir.GlobalVar("main"): made})
    facts = {"outputs": _outputs(model, made)}
    return _with(model, module=module, facts=facts, arrays=model.arrays if arrays is None else arrays)


def _last(builder: Any, binding: Any, body: Any, step: Step, call: Any, known: Any) -> Any:
    """Emit the last binding as the output of the dataflow, which is what the function returns."""
    value = call if binding.var.same_as(step.variable) else binding.value
    if not _same(body, binding.var):
        raise Unsupported("the function returns something else than its last binding")
    return builder.emit_output(_replaced(value, known), name_hint=binding.var.name)


def _outputs(model: _tvm_file.Model, main: Any) -> list[SpecDict]:
    types = list(main.ret_ty.fields) if hasattr(main.ret_ty, "fields") else [main.ret_ty]
    made: list[SpecDict] = []
    for spec, type_ in zip(model.outputs, types):
        made.append({**spec, "dtype": type_name(type_), "shape": shape_of(type_)})
    return made


_KINDS: Mapping[str, Any] = {"set-parameter": _set_parameter, "set-attribute": _set_attribute}
