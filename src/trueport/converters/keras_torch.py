"""Decides how a Keras 3 model becomes a PyTorch program: Keras itself runs it on its PyTorch backend, layer by layer.

Its weights are handed to it as parameters of an `nn.Module`, and `torch.export` writes that down, so that the `.pt2`
can be trained on. The layout stays Keras's own (channels last).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _keras_files as files
from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported, Untrusted

STEPS: tuple[Step, ...] = (
    Step(
        name="keras-torch",
        source_format="keras",
        target_format="pytorch",
        toolchain="keras-torch",
        tool="keras",
        rank=15,
        note="Keras 3 files only; the program keeps channels last, and layers of TensorFlow's own operators are not taken",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Load the model on PyTorch and export it. Raises Unsupported, Untrusted."""
    os.environ["KERAS_BACKEND"] = "torch"
    import torch

    from trueport.frameworks._torch_factory import export
    from trueport.frameworks._torch_program import Program

    model = _load(source, trust=context["trust"])
    specs = context["signature"]["inputs"]
    outputs = [spec["name"] for spec in context["signature"]["outputs"]]
    module = _module(model, [spec["name"] for spec in specs], outputs)
    inputs = tuple(torch.from_numpy(np.array(context["example"][spec["name"]])) for spec in specs)
    is_open = all(spec["shape"] and not isinstance(spec["shape"][0], int) for spec in specs)
    exported, notes, problem = export(module, inputs, {}, open_batch=is_open)
    if exported is None:
        raise Unsupported(f"torch.export does not take this model from Keras: {problem}")
    torch.export.save(exported, out)
    view = Program(exported)
    pairs = [*zip((spec["name"] for spec in specs), (spec["name"] for spec in view.specs))]
    pairs += zip(outputs, (name for _, name in view.outputs))
    count = sum(1 for _ in model.trainable_variables)
    return ConvertReply(notes=[f"{count} weights can be trained", *notes], names={a: b for a, b in pairs if a != b})


def _load(source: str, *, trust: bool) -> Any:
    import keras

    if keras.backend.backend() != "torch":
        raise Unsupported(f"Keras runs on {keras.backend.backend()} in this process; it must run on PyTorch")
    path = Path(source)
    carried = sorted(set(files.code_in(files.config(path))))
    if carried and not trust:
        raise Untrusted(f"{source}: loading it would run code that the file carries ({', '.join(carried[:3])})")
    if files.is_legacy(path):
        raise Unsupported("a Keras 2 file, which means what Keras 2 computes; save it with Keras 3 first")
    archive = path.read_bytes()[:4] == files.ZIP
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / ("model.keras" if archive else "model.h5")
        link.symlink_to(path.absolute())  # Keras goes by the suffix
        try:
            return keras.models.load_model(str(link), compile=False, safe_mode=not trust)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise Unsupported(
                f"Keras does not load this model on PyTorch: {(str(error).splitlines() or [''])[0][:200]}"
            ) from error


def _module(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The model as a module that takes its inputs one by one and gives its outputs in the signature's order."""
    import torch
    import torch.utils._pytree as pytree

    inner = getattr(model, "_functional", None) or model
    takes, gives = getattr(inner, "_inputs_struct", None), getattr(inner, "_outputs_struct", None)

    trainable, fixed = list(model.trainable_variables), list(model.non_trainable_variables)

    class Whole(torch.nn.Module):  # type: ignore[misc]  # torch is not there when this is checked
        def __init__(self) -> None:
            super().__init__()
            # Keras's own layers keep their weights where torch.export takes them for constants: they are passed in.
            self.weights = torch.nn.ParameterDict({_name(item): item.value for item in trainable})
            self.states = torch.nn.ParameterDict(
                {_name(item): torch.nn.Parameter(item.value.detach(), requires_grad=False) for item in fixed}
            )

        def forward(self, *given: Any) -> Any:
            if isinstance(takes, dict):
                argument: Any = dict(zip(inputs, given))
            else:
                argument = given[0] if len(given) == 1 else list(given)
            weights = [self.weights[_name(item)] for item in trainable]
            states = [self.states[_name(item)] for item in fixed]
            results = model.stateless_call(weights, states, argument, training=False)[0]
            if isinstance(gives, dict):
                return tuple(results[name] for name in outputs)
            flat = pytree.tree_leaves(results)
            return flat[0] if len(flat) == 1 else tuple(flat)

    return Whole().eval()


def _name(variable: Any) -> str:
    """A variable's path as the key of a ParameterDict, which takes no dots."""
    return str(variable.path).replace("/", "_").replace(".", "_")
