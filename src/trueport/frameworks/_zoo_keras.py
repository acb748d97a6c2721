"""Architectures of keras.applications as `.keras` files, with weights that data have scaled (see `_zoo_scale`).

A layer is scaled while the network runs on data: its `call` is replaced for one pass, sees what it is given, sets its
weights, and goes on with what it gives then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trueport.frameworks import _zoo_scale
from trueport.frameworks._base import Unsupported
from trueport.frameworks._keras_model import keras_module
from trueport.frameworks._zoo_names import fetched, line, unknown

SIDES = (64, 96, 128)
"""Sides of pictures that are tried, when none is asked for, before the architecture's own."""
OWN_SIDE = {"InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331}
"""The side of the pictures that an architecture was made for, where it is not 224."""
COUNT = 24
KERNELS = {
    "Conv2D": "kernel",
    "DepthwiseConv2D": "kernel",
    "Dense": "kernel",
    "SeparableConv2D": "pointwise_kernel",
}
"""Layers that are scaled -> the weight whose last axis (of a depthwise kernel: the last two) counts output channels."""
WIDE = (128.0, 60.0)
"""Middle and factor that make pictures of 0..255 of data of -2..2, for a network that prepares its pictures itself."""


def names(collection: str) -> list[str]:
    """Every architecture, sorted. collection: "keras"."""
    keras = keras_module(legacy=False)

    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def make(collection: str, name: str, options: Mapping[str, Any], out: str) -> dict[str, Any]:
    """Write the model at `out` (.keras). Returns {"path", "notes", "variation"}; see `_zoo_torch.make`.

    Raises BadModel, Unsupported.
    """
    keras = keras_module(legacy=False)

    known = names(collection)
    if name not in known:
        raise unknown(collection, name, known)
    keras.utils.set_random_seed(options.get("seed", 0))
    notes: list[str] = []
    if options["weights"] == "hub":
        side = options.get("size") or OWN_SIDE.get(name, 224)
        model = fetched(collection, name, lambda: _built(name, options, side, "imagenet"))
        images = _pictures(model, options)
    else:
        model, images = _scaled(name, options, notes)
    variation = _zoo_scale.variation(np.asarray(model(images, training=False)))
    if "batch" in options:  # it was open until now: weights are scaled on many pictures
        fixed = _built(name, options, images.shape[1], None, options["batch"])
        fixed.set_weights(model.get_weights())
        model = fixed
    model.save(out)
    return {"path": out, "notes": notes, "variation": variation}


def _built(
    name: str, options: Mapping[str, Any], side: int | None, weights: str | None, batch: int | None = None
) -> Any:
    """Call the constructor; `batch`: None leaves the batch size open."""
    import inspect

    keras = keras_module(legacy=False)

    constructor = getattr(keras.applications, name)
    settings: dict[str, Any] = {"weights": weights}
    if "classes" in options:
        settings["classes"] = options["classes"]
    if "activation" in options:
        settings["classifier_activation"] = options["activation"]
    if "alpha" in options:
        if "alpha" not in inspect.signature(constructor).parameters:
            raise Unsupported(f"{name} has no width factor; leave out alpha, which the MobileNets have")
        settings["alpha"] = options["alpha"]
    if side is not None:
        settings["input_tensor"] = keras.Input((side, side, 3), batch_size=batch, name="image")
    keras.backend.clear_session()
    return constructor(**settings)


def _scaled(name: str, options: Mapping[str, Any], notes: list[str]) -> tuple[Any, np.ndarray]:
    """The network at the side asked for, or the first one that it takes, with its weights scaled; and the data."""
    wanted = options.get("size")
    sides = (wanted,) if wanted is not None else (*SIDES, OWN_SIDE.get(name, 224))
    problem = ""
    for side in sides:
        try:
            model = _built(name, options, side, None)
        except Unsupported:
            raise
        except Exception as error:  # noqa: BLE001 -- a constructor's; the next size may suit it
            problem = line(error)
            continue
        if wanted is None and side != SIDES[0]:
            notes.append(f"it takes pictures of {side} × {side}: smaller ones do not suit it")
        images = _pictures(model, options)
        scale(model, images, options.get("seed", 0))
        return model, images
    raise Unsupported(f"{name} does not take pictures of {sides[-1]} × {sides[-1]} ({problem}); give another ?size=")


def _pictures(model: Any, options: Mapping[str, Any]) -> np.ndarray:
    """Data in the range that the network takes: 0..255 where it prepares pictures itself, else about -2..2."""
    _, height, width, depth = model.input_shape
    count = COUNT if height <= 160 else COUNT // 2
    made = _zoo_scale.pictures(count, (height, width, depth), options.get("seed", 0))
    prepares = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    return np.rint(made * WIDE[1] + WIDE[0]).astype(np.float32) if prepares else made


def _run(model: Any, images: np.ndarray) -> Any:
    return model([images] if isinstance(model.input, list) else images, training=False)


def scale(model: Any, images: np.ndarray, seed: int) -> None:
    """Give a functional model weights that data [N, H, W, C] have scaled. The variables are changed in place."""
    rng = np.random.default_rng([seed, 3])
    leaves = [layer for layer in model._flatten_layers() if not getattr(layer, "layers", None)]
    done: list[Any] = []
    ends = _ends(leaves)
    for layer in leaves:
        _vectors(layer, rng, end=layer.name in ends)
    _watched(leaves, lambda layer, call, given: _seen(layer, call, given, done, rng))(model, images)
    if done and type(done[-1]).__name__ in KERNELS:
        last = done[-1]
        _watched([last], lambda layer, call, given: _head(layer, call, given))(model, images)


def _ends(leaves: list[Any]) -> set[str]:
    """Names of the normalisations at the ends of residual branches: a sum takes what they give, perhaps after a dropout.

    They get small factors, as those that a constructor closes do: in sums of many branches of full size small errors grow.
    """
    found = set()
    for layer in leaves:
        if type(layer).__name__ == "Add" and isinstance(layer.input, list):
            for tensor in layer.input:
                source = tensor._keras_history.operation
                while type(source).__name__ == "Dropout":
                    source = source.input._keras_history.operation
                found.add(source.name)
    return found


def _vectors(layer: Any, rng: np.random.Generator, *, end: bool) -> None:
    """Factors near 1 and small biases for every channel; `end`: of a residual branch."""
    for variable in layer.trainable_variables:
        if len(variable.shape) == 1 and int(variable.shape[0]) > 1:
            value = np.zeros(variable.shape, np.float32) if end and variable.name == "gamma" else np.asarray(variable)
            value = _zoo_scale.vector(value, variable.name, rng)
            centred = variable.name == "beta" and type(layer).__name__ == "BatchNormalization"
            variable.assign(value + _zoo_scale.NORMALISED if centred else value)


def _watched(
    layers: list[Any], see: Callable[[Any, Callable[..., Any], Any], Any]
) -> Callable[[Any, np.ndarray], None]:
    """A function that runs a model once while `see(layer, its call, its input)` stands in for the layers' calls."""

    def watch(layer: Any) -> Callable[..., Any]:
        own = layer.call
        return lambda given, *args, **kwargs: see(layer, lambda value: own(value, *args, **kwargs), given)

    def run(model: Any, images: np.ndarray) -> None:
        watched = [layer for layer in layers if type(layer).__name__ in {*KERNELS, "BatchNormalization"}]
        for layer in watched:
            object.__setattr__(layer, "call", watch(layer))
        try:
            _run(model, images)
        finally:
            for layer in watched:
                object.__delattr__(layer, "call")

    return run


def _seen(layer: Any, call: Callable[..., Any], given: Any, done: list[Any], rng: np.random.Generator) -> Any:
    """Set a layer's weights by what it is given, the first time it is executed, and return what it gives then."""
    if any(layer is one for one in done):
        return call(given)
    done.append(layer)
    if type(layer).__name__ == "BatchNormalization":
        values = np.asarray(given)
        axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 1)
        layer.moving_mean.assign(values.mean(axes))
        layer.moving_variance.assign(values.var(axes))
        return call(given)
    bare = _bare(layer, call, given)
    flat = bare.reshape(-1, bare.shape[-1])
    factors, mean = _zoo_scale.channels(flat, rng)
    _multiply(layer, factors, mean - factors * flat.mean(0, dtype=np.float64))
    return call(given)


def _head(layer: Any, call: Callable[..., Any], given: Any) -> Any:
    """Centre and scale the last layer over the inputs."""
    bare = _bare(layer, call, given)
    factor, centre = _zoo_scale.head(bare)
    _multiply(layer, np.full(bare.shape[-1], factor), -factor * centre)
    return call(given)


def _bare(layer: Any, call: Callable[..., Any], given: Any) -> np.ndarray:
    """What a layer gives without its bias and its activation: the product alone."""
    activation = layer.activation
    layer.activation = None
    try:
        values = np.asarray(call(given))
    finally:
        layer.activation = activation
    return values - np.asarray(layer.bias) if layer.use_bias else values


def _multiply(layer: Any, factors: np.ndarray, mean: np.ndarray) -> None:
    """Multiply a layer's output channels by `factors` [C]; `mean` [C]: its new bias, where it has one."""
    kernel = getattr(layer, KERNELS[type(layer).__name__])
    if type(layer).__name__ == "DepthwiseConv2D":  # [h, w, channels, multiplier]
        factors = factors.reshape(kernel.shape[-2:])
    kernel.assign(np.asarray(kernel) * factors)
    if layer.use_bias:
        layer.bias.assign(mean)
