"""The older Core ML format, a neural network of layers: reads one as a `Program`, with kernels for its layers.

How values enter and leave it: an array input has the shape that the model declares, an image input [1, channels, height,
width] with values 0 to 255 and the channels in the model's order of colours. Networks of the first versions see every value
as [Seq, Batch, C, H, W]; their inputs and outputs are brought to and from that. Scaling and mean of an image are operations
of the program. A classifier gives its scores; the label is the name of the largest, and is no value here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from trueport.frameworks import (
    _coreml_nn_classic,
    _coreml_nn_control,
    _coreml_nn_elementwise,
    _coreml_nn_image,
    _coreml_nn_index,
    _coreml_nn_recurrent,
    _coreml_nn_shapes,
    _coreml_nn_spatial,
)
from trueport.frameworks._base import BadModel, Dim, Unsupported
from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, refusing, table
from trueport.frameworks._coreml_nn_read import PREFIX, Reader, kind_of
from trueport.frameworks._coreml_program import Block, Call, Constant, Operation, Program, Type

if TYPE_CHECKING:
    import torch

NETWORKS = ("neuralNetwork", "neuralNetworkClassifier", "neuralNetworkRegressor")
"""Model types that `read` takes."""
_ARRAYS = {"FLOAT32": "float32", "FLOAT16": "float16", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}
_CHANNELS = {"GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1, "RGB": 3, "BGR": 3}


def read(spec: Any) -> Program:
    """Turn a Model message that holds a neural network into a `Program`.

    `meta`: "spec_version", "weights" (storage -> number of values), "images" (input -> colours and size), "preprocessing",
    "classes" (number of), "rank5". Raises BadModel, and Unsupported by name for a pipeline or another model type.
    """
    kind = spec.WhichOneof("Type")
    if kind not in NETWORKS:
        raise Unsupported(
            f"a Core ML model of type '{kind}' is not a neural network; only those and ML programs are run"
        )
    network = getattr(spec, kind)
    rank5 = network.arrayInputShapeMapping == 0
    entry = _Entry(network, rank5)
    inputs = {item.name: entry.input(item) for item in spec.description.input}
    blobs = _output_blobs(spec, kind, network)
    reader = Reader(network.layers, entry.blobs, blobs.values())
    reader.current.update(entry.blobs)
    reader.read()
    operations = [*entry.operations, *reader.operations]
    outputs = _leave(_declared_outputs(spec, kind, network, blobs), blobs, reader, operations, rank5)
    return Program(
        inputs=inputs,
        outputs=outputs,
        constants={**entry.constants, **reader.constants},
        block=Block(list(inputs), list(outputs), operations),
        meta=_meta(spec, kind, network, rank5, reader.constants),
    )


# -- the way in


class _Entry:
    """Operations that make of the model's inputs what its first layers read. `blobs`: name in the network -> value."""

    def __init__(self, network: Any, rank5: bool) -> None:
        self.rank5, self.image_rank5 = rank5, network.imageInputShapeMapping == 0
        self.steps = {item.featureName: item for item in network.preprocessing}
        self.operations: list[Operation] = []
        self.constants: dict[str, Constant] = {}
        self.blobs: dict[str, str] = {}

    def input(self, item: Any) -> Type:
        """Take one input of the description; gives its type. Raises Unsupported for an input that is no array or image."""
        kind, name = item.type.WhichOneof("Type"), str(item.name)
        self.blobs[name] = name
        if kind == "imageType":
            return self._image(name, item.type.imageType)
        if kind != "multiArrayType":
            raise Unsupported(f"the input '{name}' is of type '{kind}'; a neural network takes arrays and images")
        shape = array_shape(item.type.multiArrayType)
        if self.rank5 and shape is not None:
            if len(shape) not in (1, 3):
                raise BadModel(f"the input '{name}' has the shape {list(shape)}, and this network takes 1 or 3 sizes")
            self._add(name, "enter", {"declared": len(shape)})
        return Type(array_dtype(item.type.multiArrayType), shape)

    def _image(self, name: str, image: Any) -> Type:
        channels = image_channels(name, image)
        # A network with one image may leave the name of what it scales empty.
        step = self.steps.get(name) or self.steps.get("")
        if step is not None and step.WhichOneof("preprocessor") == "scaler":
            order = image.DESCRIPTOR.enum_types_by_name["ColorSpace"].values_by_number[image.colorSpace].name
            self._add(
                name, "imageScaler", {"channelScale": step.scaler.channelScale, "biases": _biases(step.scaler, order)}
            )
        elif step is not None and step.WhichOneof("preprocessor") == "meanImage":
            self._mean(name, step.meanImage.meanImage, (channels, int(image.height), int(image.width)))
        if self.image_rank5:
            self._add(name, "enter", {"declared": 4})
        return Type("float32", (1, channels, *image_sizes(image)))

    def _mean(self, name: str, values: Any, shape: tuple[int, ...]) -> None:
        if len(values) != int(np.prod(shape)):
            raise BadModel(f"the mean image of '{name}' has {len(values)} values, and the image {list(shape)}")
        stored = f"{name}.meanImage"
        self.constants[stored] = Constant("float32", shape, lambda: np.array(values, np.float32).reshape(shape))
        self._add(name, "meanImage", {}, {"mean": [stored]})

    def _add(
        self, name: str, kind: str, attributes: dict[str, Any], further: dict[str, list[str]] | None = None
    ) -> None:
        made = f"{name}#{kind}"
        arguments = {"x": [self.blobs[name]], **(further or {})}
        self.operations.append(Operation(made, PREFIX + kind, arguments, [made], [Type()], attributes))
        self.blobs[name] = made


def _biases(scaler: Any, order: str) -> list[float]:
    by_colour = {"R": scaler.redBias, "G": scaler.greenBias, "B": scaler.blueBias}
    return [by_colour[colour] for colour in order] if order in ("RGB", "BGR") else [scaler.grayBias]


def array_dtype(message: Any) -> str:
    """NumPy's name of the type of an array feature. Raises Unsupported for one that is not known."""
    name = message.DESCRIPTOR.enum_types_by_name["ArrayDataType"].values_by_number[message.dataType].name
    if name not in _ARRAYS:
        raise Unsupported(f"an array of type {name} is not handled")
    return _ARRAYS[name]


def array_shape(message: Any) -> tuple[Dim, ...] | None:
    """Sizes of an array feature; a size that the model leaves open is None. None where it gives no shape."""
    sizes: list[Dim] = [int(size) for size in message.shape]
    flexible = message.WhichOneof("ShapeFlexibility")
    if flexible == "shapeRange":
        ranges = message.shapeRange.sizeRanges
        sizes = [int(r.lowerBound) if r.lowerBound == r.upperBound else None for r in ranges] or sizes
    elif flexible == "enumeratedShapes":
        choices = [tuple(int(size) for size in item.shape) for item in message.enumeratedShapes.shapes]
        if len({len(choice) for choice in choices}) == 1:
            sizes = [column[0] if len(set(column)) == 1 else None for column in zip(*choices)]
    return tuple(sizes) or None


def image_channels(name: str, image: Any) -> int:
    """Number of channels of an image feature. Raises BadModel where the model does not say."""
    colours = image.DESCRIPTOR.enum_types_by_name["ColorSpace"].values_by_number[image.colorSpace].name
    if colours not in _CHANNELS:
        raise BadModel(f"the image '{name}' says no colours")
    return _CHANNELS[colours]


def image_sizes(image: Any) -> tuple[Dim, Dim]:
    """(height, width) of an image feature; None where the model takes several."""
    flexible = image.WhichOneof("SizeFlexibility")
    if flexible == "imageSizeRange":
        bounds = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        found = [int(b.lowerBound) if b.lowerBound == b.upperBound else None for b in bounds]
        return found[0], found[1]
    if flexible == "enumeratedSizes":
        heights = {int(size.height) for size in image.enumeratedSizes.sizes} | {int(image.height)}
        widths = {int(size.width) for size in image.enumeratedSizes.sizes} | {int(image.width)}
        return (heights.pop() if len(heights) == 1 else None), (widths.pop() if len(widths) == 1 else None)
    return int(image.height), int(image.width)


# -- the way out


def _output_blobs(spec: Any, kind: str, network: Any) -> dict[str, str]:
    """Output of the model -> what it is called in the network. A classifier's scores come from the layer that it names."""
    description = spec.description
    if kind != "neuralNetworkClassifier":
        return {item.name: item.name for item in description.output}
    label, scores = description.predictedFeatureName, description.predictedProbabilitiesName
    blobs = {item.name: item.name for item in description.output if item.name not in (label, scores)}
    source = network.labelProbabilityLayerName or (network.layers[-1].output[0] if network.layers else "")
    return {scores or source: source, **blobs}


def _declared_outputs(spec: Any, kind: str, network: Any, blobs: Iterable[str]) -> dict[str, Type]:
    """Output -> the type that the description gives it. Scores, a table of labels there, are a vector here."""
    described = {item.name: item.type for item in spec.description.output}
    declared = {name: _declared(described.get(name)) for name in blobs}
    if kind == "neuralNetworkClassifier":
        declared[next(iter(blobs))] = Type("float32", (len(_labels(network)) or None,))
    return declared


def _leave(
    declared: dict[str, Type], blobs: dict[str, str], reader: Reader, operations: list[Operation], rank5: bool
) -> dict[str, Type]:
    """Add what brings the network's last values to the declared outputs; gives the outputs of the program."""
    types = {name: kind for operation in operations for name, kind in zip(operation.outputs, operation.types)}
    types.update({name: Type("float32", stored.shape) for name, stored in reader.constants.items()})
    outputs: dict[str, Type] = {}
    taken = (
        {name for operation in operations for name in operation.outputs} | set(reader.constants) | set(reader.current)
    )
    for output, blob in blobs.items():
        if blob not in reader.current:
            raise BadModel(f"nothing in the network writes '{blob}', which the output '{output}' is; convert it again")
        value, kind = reader.current[blob], declared[output]
        known = types.get(value, Type()).shape
        fits = kind.shape is None or (known is not None and len(known) == len(kind.shape))
        if value == output and not rank5 and kind.dtype == "float32" and fits:
            outputs[output] = Type("float32", kind.shape or known)
            continue
        if value == output:  # the output's name is for what leaves the network
            value = f"{output}#inside"
            _rename(operations, reader, output, value)
        elif output in taken:
            raise Unsupported(f"the output '{output}' and a value inside the network have one name")
        settings = {"rank": None if kind.shape is None else len(kind.shape), "rank5": rank5}
        operations.append(Operation(f"{output}#leave", PREFIX + "leave", {"x": [value]}, [output], [kind], settings))
        outputs[output] = kind
    return outputs


def _declared(feature: Any) -> Type:
    """The type that the description gives an output; float32 of unknown shape where it says nothing."""
    kind = None if feature is None else feature.WhichOneof("Type")
    if kind == "multiArrayType":
        return Type(array_dtype(feature.multiArrayType), array_shape(feature.multiArrayType))
    if kind == "doubleType":
        return Type("float64", (1,))
    if kind == "int64Type":
        return Type("int64", (1,))
    return Type("float32", None)


def _rename(operations: Iterable[Operation], reader: Reader, old: str, new: str) -> None:
    """Give a value another name wherever it is written or read."""
    pending = list(operations)
    while pending:
        operation = pending.pop()
        operation.outputs = [new if name == old else name for name in operation.outputs]
        operation.inputs = {key: [new if n == old else n for n in bound] for key, bound in operation.inputs.items()}
        for key in ("results", "conditionVar"):
            held = operation.attributes.get(key)
            if held == old:
                operation.attributes[key] = new
            elif isinstance(held, list):
                operation.attributes[key] = [new if name == old else name for name in held]
        for block in operation.blocks:
            pending.extend(block.operations)
    if old in reader.constants:
        reader.constants[new] = reader.constants.pop(old)
    reader.current = {blob: new if name == old else name for blob, name in reader.current.items()}


# -- what the file says about itself


def _meta(spec: Any, kind: str, network: Any, rank5: bool, constants: dict[str, Constant]) -> dict[str, Any]:
    weights: Counter[str] = Counter()
    for stored in constants.values():
        weights[stored.dtype] += int(np.prod(stored.shape, dtype=np.int64))
    meta: dict[str, Any] = {
        "model_type": kind,
        "spec_version": int(spec.specificationVersion),
        "weights": dict(weights),
        "rank5": rank5,
        "images": {item.name: _facts(item.type.imageType) for item in spec.description.input if _is_image(item)},
        "preprocessing": [str(item.WhichOneof("preprocessor")) for item in network.preprocessing],
        "layers": dict(Counter(kind_of(layer) for layer in network.layers).most_common()),
    }
    notes = []
    if kind == "neuralNetworkClassifier":
        meta["classes"] = len(_labels(network))
        notes.append(f"the label '{spec.description.predictedFeatureName}' is the name of the largest score")
    flat = [layer.name for layer in network.layers if _lacks_channels(layer)]
    if flat:
        notes.append(
            f"the activation '{flat[0]}' ({len(flat)} such) has one number per channel and a value of rank 1 or 2, for "
            "which the format names no channel; the axis of that length is taken"
        )
    if notes:
        meta["notes"] = notes
    return meta


def _lacks_channels(layer: Any) -> bool:
    """Whether an activation has weights by channel, and its input, where the file tells its rank, has no channel axis."""
    if layer.WhichOneof("layer") != "activation" or not layer.inputTensor:
        return False
    kind = layer.activation.WhichOneof("NonlinearityType")
    return kind in ("PReLU", "parametricSoftplus") and 0 < layer.inputTensor[0].rank < 3


def _labels(network: Any) -> Any:
    return getattr(network, network.WhichOneof("ClassLabels") or "stringClassLabels").vector


def _is_image(item: Any) -> bool:
    return bool(item.type.WhichOneof("Type") == "imageType")


def _facts(image: Any) -> dict[str, Any]:
    colours = image.DESCRIPTOR.enum_types_by_name["ColorSpace"].values_by_number[image.colorSpace].name
    return {"colors": colours, "height": int(image.height), "width": int(image.width)}


# -- kernels


def _enter(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """To [Seq, Batch, C, H, W]. An array may bring the sequence and the batch in front of what the model declares."""
    sizes, declared = list(x.shape), layer["declared"]
    if declared == 1:  # [C], or [Seq, Batch, C]
        sizes = [*sizes, 1, 1]
    if len(sizes) > 5 or (declared == 1 and x.dim() not in (1, 3)):
        raise ValueError(f"the value {list(x.shape)} does not fit the input of '{layer.name}'")
    return x.reshape([1] * (5 - len(sizes)) + sizes)


def _leave_kernel(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """From what the network computes to the rank that the model declares; only axes of size 1 go."""
    rank = layer["rank"]
    if rank is None or x.dim() == rank:
        return x
    if rank == 1 and x.numel() == max(x.shape):
        return x.reshape(-1)
    if x.dim() > rank and all(size == 1 for size in x.shape[: x.dim() - rank]):
        return x.reshape(x.shape[x.dim() - rank :])
    if x.dim() < rank and not layer["rank5"]:
        return x.reshape([1] * (rank - x.dim()) + list(x.shape))
    return x


def _image_scaler(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    import torch

    return x * layer["channelScale"] + torch.tensor(layer["biases"], dtype=x.dtype).reshape(-1, 1, 1)


_OWN: dict[str, LayerKernel] = {
    "enter": _enter,
    "leave": _leave_kernel,
    "imageScaler": _image_scaler,
    "meanImage": lambda layer, x: x - layer.need("mean"),
}
"""What happens at the border of a network; the format has no layers for it."""

LAYERS: dict[str, LayerKernel] = {
    **_coreml_nn_spatial.KERNELS,
    **_coreml_nn_image.KERNELS,
    **_coreml_nn_classic.KERNELS,
    **_coreml_nn_elementwise.KERNELS,
    **_coreml_nn_shapes.KERNELS,
    **_coreml_nn_index.KERNELS,
    **_coreml_nn_recurrent.KERNELS,
    # Inside branches and loops only: elsewhere what they load is a constant of the program.
    "loadConstant": lambda layer: layer.need("data"),
    "loadConstantND": lambda layer: layer.need("data"),
}
"""Layers that are run, by their name in the format; branches and loops are in `_coreml_nn_control`."""

_RANDOM = [f"random{law}{form}" for law in ("Normal", "Uniform", "Bernoulli") for form in ("Like", "Static", "Dynamic")]
REFUSED: dict[str, str] = {
    **dict.fromkeys((*_RANDOM, "categoricalDistribution"), "draws random numbers, which differ on every machine"),
    "custom": "is code of the model's author, which the file does not hold",
}
"""Layers that are known and not run -> why."""

KERNELS: dict[str, Callable[[Call], Any]] = {
    **table({name: refusing(why) for name, why in REFUSED.items()}, PREFIX),
    **table({**_OWN, **LAYERS}, PREFIX),
    **_coreml_nn_control.KERNELS,
}
"""The evaluator's table for programs that `read` makes."""
