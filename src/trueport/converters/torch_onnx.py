"""PyTorch's own exporters: to ONNX through the exported program (dynamo) or through a trace, and to TorchScript.

Input and output names are the source's: both exporters take them as arguments, and what they made of them is read back
from the result. Axes that the source leaves open stay open.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

_OPSET = ("opset", "ONNX opset of the result")

STEPS: tuple[Step, ...] = (
    Step(
        name="torch-dynamo",
        source_format="pytorch",
        target_format="onnx",
        toolchain="torch",
        tool="torch",
        rank=10,
        options=(
            ("opset", "ONNX opset of the result (default: the exporter's own)"),
            ("optimize", "true (default) or false: run onnxscript's optimiser on the result"),
        ),
        note="attention with a fully masked row is wrong below opset 23",
    ),
    Step(
        name="torch-torchscript",
        source_format="pytorch",
        target_format="onnx",
        toolchain="torch",
        tool="torch",
        rank=30,
        options=((_OPSET[0], f"{_OPSET[1]} (default 17, at most 20)"),),
        note="the older exporter: a trace, so control flow and sizes that Python saw are baked in",
    ),
    Step(
        name="torchscript-onnx",
        source_format="torchscript",
        target_format="onnx",
        toolchain="torch",
        tool="torch",
        rank=20,
        options=((_OPSET[0], f"{_OPSET[1]} (default 17, at most 20)"),),
        note="axes other than the batch are fixed to those of the traced example",
    ),
    Step(
        name="torch-jit",
        source_format="pytorch",
        target_format="torchscript",
        toolchain="torch",
        tool="torch",
        rank=20,
        note="a trace: loops whose length depends on the input are unrolled to the example's length",
    ),
)

_LARGEST = 2**31 - 2**20
"""Bytes that one protobuf message can hold, less room for the graph; beyond it the weights go beside the model."""


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Run one of STEPS. Raises Unsupported for an operator that the exporter lacks, InvalidOutput for an empty result."""
    return _STEPS[step](source, out, options, context)


def opset_of(options: Mapping[str, Any], default: int | None) -> int | None:
    """The option `opset` as a number. Raises ValueError when it is none."""
    given = options.get("opset")
    if given is None or given == "":
        return default
    if not str(given).isdigit():
        raise ValueError(f"option opset={given}: give a number such as 17")
    return int(given)


def flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """An option that is true or false. Raises ValueError for anything else."""
    given = str(options.get(name, default)).lower()
    if given not in ("true", "false"):
        raise ValueError(f"option {name}={given}: give true or false")
    return given == "true"


def _dynamo(source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    import torch

    from trueport.frameworks._torch_program import Program, load

    exported = load(source, trust=context["trust"])
    view = Program(exported)
    names_in, names_out = [spec["name"] for spec in view.specs], [name for _, name in view.outputs]
    try:
        program = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            verbose=False,
            opset_version=opset_of(options, None),
            optimize=flag(options, "optimize", True),
            input_names=names_in,
            output_names=names_out,
        )
    except Exception as error:
        raise _mapped(error) from error
    if program is None:
        raise InvalidOutput("the exporter returned nothing")
    weights = sum(value.numel() * value.element_size() for value in exported.state_dict.values())
    notes = []
    if weights > _LARGEST:
        notes.append(f"the weights have {weights / 2**30:.1f} GiB and lie beside the model in {Path(out).name}.data")
    program.save(out, external_data=weights > _LARGEST)
    return _reply(out, names_in, names_out, notes)


def _torchscript(source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    module, args, kwargs = open_program(source, context)
    _show_sizes_to_tracer(module)
    axes = {
        spec["name"]: {axis: size for axis, size in enumerate(spec["shape"] or []) if isinstance(size, str)}
        for part in (context["signature"]["inputs"], context["signature"]["outputs"])
        for spec in part
    }
    return _old_exporter(module, args, kwargs, out, options, context, axes)


def _script_onnx(source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    import torch

    module = torch.jit.load(source, map_location="cpu").eval()
    args = tuple(_script_argument(spec, context) for spec in context["signature"]["inputs"])
    axes = {}
    for spec in context["signature"]["inputs"]:
        shape = spec["shape"]
        # Where the file does not say which axes are open, axis 0 is declared so.
        known = {axis: size for axis, size in enumerate(shape or []) if isinstance(size, str)}
        axes[spec["name"]] = known or (
            {0: "batch"} if shape is None and np.ndim(context["example"][spec["name"]]) else {}
        )
    for spec in context["signature"]["outputs"]:
        axes[spec["name"]] = {axis: size for axis, size in enumerate(spec["shape"] or []) if isinstance(size, str)}
    return _old_exporter(module, args, {}, out, options, context, axes)


def _script_argument(spec: Any, context: ConvertContext) -> Any:
    import torch

    value = np.array(context["example"][spec["name"]])
    return value.item() if spec["shape"] == [] and value.ndim == 0 else torch.from_numpy(value)


def _old_exporter(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: str,
    options: Mapping[str, Any],
    context: ConvertContext,
    axes: dict[str, dict[int, str]],
) -> ConvertReply:
    import torch

    names_in = [spec["name"] for spec in context["signature"]["inputs"]]
    names_out = [spec["name"] for spec in context["signature"]["outputs"]]
    try:
        with torch.no_grad():
            torch.onnx.export(
                module,
                args,
                out,
                kwargs=kwargs or None,
                dynamo=False,
                opset_version=opset_of(options, 17),
                input_names=names_in,
                output_names=names_out,
                dynamic_axes={name: sizes for name, sizes in axes.items() if sizes},
            )
    except Exception as error:
        raise _mapped(error) from error
    return _reply(out, names_in, names_out, [])


def _jit(source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    import torch

    module, args, kwargs = open_program(source, context)
    _show_sizes_to_tracer(module)
    with torch.no_grad():
        if kwargs:
            traced = torch.jit.trace(
                module, example_inputs=None, example_kwarg_inputs=kwargs, strict=False, check_trace=False
            )
        else:
            traced = torch.jit.trace(module, args, strict=False, check_trace=False)
    torch.jit.save(traced, out)
    arguments = [argument.name for argument in traced._c._get_method("forward").schema.arguments[1:]]
    wanted = [spec["name"] for spec in context["signature"]["inputs"]]
    return {"names": {a: b for a, b in zip(wanted, arguments) if a != b}}


def open_program(source: str, context: ConvertContext) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The program as a module that can be traced, with the example's arguments as it wants to be called."""
    import torch
    import torch.utils._pytree as pytree

    from trueport.frameworks._torch_program import Program, load
    from trueport.frameworks._torch_values import tensor_of

    exported = load(source, trust=context["trust"])
    view = Program(exported)
    flat = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        fixed = type(spec.arg).__name__ == "ConstantArgument"
        known = next((item for item in view.specs if item["name"] == spec.arg.name), None)
        if fixed or known is None:
            flat.append(getattr(spec.arg, "value", None))
        else:
            flat.append(tensor_of(np.asarray(context["example"][known["name"]]), known["dtype"]))
    args, kwargs = pytree.tree_unflatten(flat, exported.call_spec.in_spec)
    module = exported.module(check_guards=False)
    # Its check of input sizes cannot be traced; the sizes are the example's, which the signature has been checked with.
    module._forward_pre_hooks.clear()
    # Tracers call train(False), which a program refuses; what it does in training was decided when it was exported.
    module.train = lambda mode=True: module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert isinstance(module, torch.fx.GraphModule)
    return module, args, kwargs


def _show_sizes_to_tracer(graph_module: Any) -> None:
    """Rewrite the operators that read or take open sizes into the calls that a tracer follows; others would be baked in."""
    import torch

    def size(tensor: Any, axis: int) -> Any:
        return tensor.size(axis)

    for node in graph_module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._opname
        if name == "sym_size":
            node.target = size
        elif any(isinstance(one.meta.get("val"), torch.SymInt) for one in node.all_input_nodes):
            takes_tensor = node.target._schema.arguments[0].name == "self"
            if takes_tensor and hasattr(torch.Tensor, name):
                node.op, node.target = "call_method", name
            elif not takes_tensor and hasattr(torch, name):
                node.target = getattr(torch, name)
    graph_module.recompile()


def _mapped(error: BaseException) -> BaseException:
    """An exporter's exception in our terms: an operator that it does not know is Unsupported."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in reversed(chain):
        if type(one).__name__ in ("DispatchError", "UnsupportedOperatorError", "SymbolicValueError"):
            return Unsupported((str(one).strip().splitlines() or [type(one).__name__])[0])
    first = (str(error).strip().splitlines() or [""])[0]
    if "Unsupported ONNX opset" in str(error) or "opset_version" in first:
        return Unsupported(first)
    return RuntimeError((str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__])[0])


def _reply(out: str, inputs: list[str], outputs: list[str], notes: list[str]) -> ConvertReply:
    """Read the names back from the file: where they differ from what was asked for, by position."""
    import onnx

    graph = onnx.load(out, load_external_data=False).graph
    constants = {item.name for item in graph.initializer}
    made_in = [item.name for item in graph.input if item.name not in constants]
    made_out = [item.name for item in graph.output]
    if len(made_out) != len(outputs):
        raise InvalidOutput(f"the model has {len(outputs)} outputs, the exporter wrote {len(made_out)}")
    names = {a: b for a, b in zip(outputs, made_out) if a != b}
    if len(made_in) == len(inputs):
        names.update({a: b for a, b in zip(inputs, made_in) if a != b})
    else:
        gone = [name for name in inputs if name not in made_in]
        notes = [*notes, f"the exporter dropped inputs that the result does not depend on: {', '.join(gone)}"]
    return {"notes": notes, "names": names}


_STEPS = {
    "torch-dynamo": _dynamo,
    "torch-torchscript": _torchscript,
    "torchscript-onnx": _script_onnx,
    "torch-jit": _jit,
}
