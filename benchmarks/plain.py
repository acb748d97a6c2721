"""What a person would write without trueport: the floor that a benchmark's ratio stands on.

Runs in a toolchain's own interpreter and imports nothing of ours. Started as `python plain.py`, it reads one request
per line, {"do": name of a function in DO, ...its arguments}, and answers each with one line, {"seconds": ..., "value": ...}.
Only what a function does after its `warm-up` (imports, a model that the caller keeps loaded) is timed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# -- models


def make_keras(name: str, size: int, images: str, out: str) -> dict[str, Any]:
    """Save a network of keras.applications with random weights, its BatchNorm statistics taken from a pass over images.

    Without that pass the activations of a deep random network vanish, and there is nothing left to compare.
    """
    import keras

    keras.utils.set_random_seed(0)
    classes = {"classifier_activation": None} if name.startswith("ResNet") else {}
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), **classes)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(np.load(images), training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    model.save(out)
    return {"bytes": Path(out).stat().st_size, "parameters": int(model.count_params())}


def make_torch(images: str, out: str) -> dict[str, Any]:
    """Save an exported program of a ResNet-18: stem, four stages of two residual blocks, pooling, classifier."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.norm_one = nn.BatchNorm2d(outside)
            self.two = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            self.norm_two = nn.BatchNorm2d(outside)
            self.short: nn.Module = nn.Identity()
            if stride != 1 or inside != outside:
                self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norm_one(self.one(x)))
            return torch.relu(self.norm_two(self.two(y)) + self.short(x))

    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    widths += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    blocks = [Block(*width) for width in widths]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    data = torch.from_numpy(np.load(images).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for _ in range(20):
            model.train()(data)
    open_batch = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.export.save(torch.export.export(model.eval(), (data,), dynamic_shapes=open_batch), out)
    return {"bytes": Path(out).stat().st_size, "parameters": sum(value.numel() for value in model.parameters())}


# -- the converters' own calls: from the file (`load`), or on a model that is loaded already


@functools.lru_cache(maxsize=1)
def _keras(path: str) -> Any:
    import keras

    return keras.models.load_model(path, compile=False)


@functools.lru_cache(maxsize=1)
def _program(path: str) -> Any:
    import torch

    return torch.export.load(path)


def tflite_keras(source: str, out: str, *, load: bool = False) -> Callable[[], None]:
    """TensorFlow's guide: from_keras_model, convert, write."""
    import tensorflow as tf

    kept = None if load else _keras(source)

    def convert() -> None:
        model = kept or _keras.__wrapped__(source)
        Path(out).write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())

    return convert


def tf2onnx_keras(source: str, out: str, *, load: bool = False) -> Callable[[], None]:
    """tf2onnx's guide: from_function with an open batch and the model's own input names (from_keras needs Keras 2)."""
    import tensorflow as tf
    import tf2onnx

    kept = None if load else _keras(source)

    def convert() -> None:
        model = kept or _keras.__wrapped__(source)
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]
        call = tf.function(lambda *flat: model(list(flat) if len(flat) > 1 else flat[0], training=False), specs)
        tf2onnx.convert.from_function(call, specs, opset=17, output_path=out)

    return convert


def torch_dynamo(source: str, out: str, *, load: bool = False) -> Callable[[], None]:
    """PyTorch's guide: torch.onnx.export of an exported program, save."""
    import torch

    kept = None if load else _program(source)

    def convert() -> None:
        program = kept or _program.__wrapped__(source)
        torch.onnx.export(program, (), dynamo=True, verbose=False).save(out, external_data=False)

    return convert


# -- loading and forward passes; `requests`: [{"precision", "variant", "cases": {name: {input: .npy file}}}]


def forward_keras(source: str, requests: list[dict[str, Any]]) -> Callable[[], int]:
    """Load the model and make the passes, each kind through the function that TensorFlow's guide gives for it."""
    import keras
    import tensorflow as tf

    def load() -> dict[str, Callable[..., Any]]:
        model = keras.models.load_model(source, compile=False)
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]

        def call(*flat: Any) -> Any:
            return model(list(flat) if len(flat) > 1 else flat[0], training=False)

        return {
            "default": tf.function(call, specs, autograph=False),
            "eager": call,
            "xla": tf.function(call, autograph=False, jit_compile=True),
            "float64": functools.partial(_double, model, {}),
        }

    return functools.partial(_passes, load, requests, lambda value: np.asarray(value))


def _double(model: Any, made: dict[str, Any], *flat: Any) -> Any:
    """A copy of the model in float64, made at the first call."""
    import keras
    import tensorflow as tf

    if not made:

        def in_double(layer: Any) -> Any:
            return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

        double = keras.models.clone_model(model, clone_function=in_double)
        double.set_weights([np.asarray(weight, np.float64) for weight in model.get_weights()])
        made["call"] = tf.function(
            lambda *values: double(*values, training=False), autograph=False, reduce_retracing=True
        )
    return made["call"](*(tf.constant(value, tf.float64) for value in flat))


def forward_tflite(source: str, requests: list[dict[str, Any]]) -> Callable[[], int]:
    """Load the file once per kernel set and make the passes; the inputs are resized where their shape changes."""
    from ai_edge_litert import interpreter as litert

    kinds = litert.OpResolverType
    settings = {
        "default": {},
        "builtin": {"experimental_op_resolver_type": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES},
        "reference": {"experimental_op_resolver_type": kinds.BUILTIN_REF},
        "single-thread": {"num_threads": 1},
    }

    def load() -> dict[str, Callable[..., Any]]:
        return {name: functools.partial(_invoke, _Interpreters(source, given)) for name, given in settings.items()}

    return functools.partial(_passes, load, requests, lambda value: value)


class _Interpreters:
    """One interpreter, made at the first call."""

    def __init__(self, source: str, given: dict[str, Any]) -> None:
        self.source, self.given, self.made = source, given, None

    def get(self) -> Any:
        from ai_edge_litert import interpreter as litert

        if self.made is None:
            self.made = litert.Interpreter(self.source, **self.given)
            self.made.allocate_tensors()
        return self.made


def _invoke(interpreters: _Interpreters, *flat: Any) -> Any:
    interpreter = interpreters.get()
    details = interpreter.get_input_details()
    changed = [(item, value) for item, value in zip(details, flat, strict=True) if tuple(item["shape"]) != value.shape]
    for item, value in changed:
        interpreter.resize_tensor_input(item["index"], value.shape)
    if changed:
        interpreter.allocate_tensors()
    for item, value in zip(details, flat, strict=True):
        interpreter.set_tensor(item["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()]


def forward_onnx(source: str, requests: list[dict[str, Any]]) -> Callable[[], int]:
    """Load the file in ONNX Runtime, as shipped, and make the passes."""
    import onnxruntime

    def load() -> dict[str, Callable[..., Any]]:
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_inputs()]
        return {"default": lambda *flat: session.run(None, dict(zip(names, flat, strict=True)))}

    return functools.partial(_passes, load, requests, lambda value: value)


def _passes(
    load: Callable[[], dict[str, Callable[..., Any]]],
    requests: list[dict[str, Any]],
    take: Callable[[Any], Any],
) -> int:
    """Load, and run every case of every request, one call per run; returns how many calls that were."""
    ways, count = load(), 0
    for request in requests:
        call = ways[request["variant"] if request["precision"] == "float32" else request["precision"]]
        for arrays in request["cases"].values():
            inputs = [np.load(path, mmap_mode="r") for path in arrays.values()]
            for run in range(len(inputs[0])):
                take(call(*(np.ascontiguousarray(array[run]) for array in inputs)))
                count += 1
    return count


DO: dict[str, Callable[..., Any]] = {
    "make_keras": make_keras,
    "make_torch": make_torch,
    "tflite_keras": tflite_keras,
    "tf2onnx_keras": tf2onnx_keras,
    "torch_dynamo": torch_dynamo,
    "forward_keras": forward_keras,
    "forward_tflite": forward_tflite,
    "forward_onnx": forward_onnx,
}


def serve() -> None:
    """Answer requests until the input ends. Whatever a framework prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        value = DO[request.pop("do")](**request)
        started, used = time.perf_counter(), time.process_time()
        value = value() if callable(value) else value
        reply = {"value": value, "seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve()
