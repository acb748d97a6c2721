"""The 15 erroneous conversions of the study: what they report, and how each is rebuilt here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """How a model file comes to be.

    zoo: "keras" (keras.applications), "torch" (`networks.py`), "keras-port" (the PyTorch weights in a Keras model) or
    "torch-port" (the Keras weights in a PyTorch model).
    front: the preparation it carries, of `networks.FRONTS`. taller: pixels added to its declared height. epsilon: of every
    BatchNorm, None keeps the network's own. entry: of a port, see `keras_side.port`. route: conversion steps from there.
    precision: what the route is asked for. spoiled: changes of the finished file, of `study.SPOILERS`.
    """

    zoo: str
    front: str = ""
    taller: int = 0
    epsilon: float | None = None
    entry: str = ""
    route: str = ""
    precision: str = "float32"
    spoiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One erroneous conversion. theirs, found: their best result and what was wrong, as published.

    right: how the target is made without the fault, which shows that the rest of the pair is sound. how: the fault in
    words. edits: the shortest list of changes to the target's file that undoes it, in words. kinds: what diagnosis has
    to call the fault (causes, or the verdict "incomparable").
    """

    id: str
    network: str
    conversion: str
    theirs: str
    found: str
    source: Model
    right: Model
    wrong: Model
    how: str
    edits: str
    kinds: tuple[str, ...]
    fewest: int = 0
    """Edits in the shortest list; 0: as many as places were spoiled, which the rebuild counts."""


KERAS_TFLITE, TF, TF_TFLITE = "tflite-keras", "keras-savedmodel", "keras-savedmodel,tflite-savedmodel"
TORCH_TFLITE = "litert-torch"
SILENT = (
    "the weights as the converter's DEFAULT optimisation rounds them to int8, written back as float32: nothing in the"
    " file tells"
)

CASES = (
    Case(
        id="inception-tf-tflite",
        network="inception_v3",
        conversion="TF → TFLite",
        theirs="0 % after 94 weight copies",
        found="quantised weights",
        source=Model(zoo="keras", route=TF),
        right=Model(zoo="keras", route=TF_TFLITE),
        wrong=Model(zoo="keras", route=TF_TFLITE, spoiled=("dequantised",)),
        how=SILENT,
        edits="one weight per convolution and the dense layer's",
        kinds=("precision", "parameters"),
    ),
    Case(
        id="inception-torch-keras",
        network="inception_v3",
        conversion="PyTorch → Keras",
        theirs="0 % (32.4 % under the wrong preprocessing)",
        found="layout",
        source=Model(zoo="torch"),
        right=Model(zoo="keras-port", entry="transpose"),
        wrong=Model(zoo="keras-port", entry="reshape"),
        how="NCHW is read as NHWC: a Reshape stands where the elements have to be transposed",
        edits="one: the Reshape becomes a Permute",
        kinds=("structure",),
        fewest=1,
    ),
    Case(
        id="mobilenet-keras-tflite",
        network="mobilenet_v2",
        conversion="Keras → TFLite",
        theirs="0.33 %",
        found="quantised weights",
        source=Model(zoo="keras"),
        right=Model(zoo="keras", route=KERAS_TFLITE),
        wrong=Model(zoo="keras", route=KERAS_TFLITE, spoiled=("dequantised",)),
        how=SILENT,
        edits="one weight per convolution and the dense layer's",
        kinds=("precision", "parameters"),
    ),
    Case(
        id="mobilenet-keras-torch",
        network="mobilenet_v2",
        conversion="Keras → PyTorch",
        theirs="0 % without edits (83.4 % under the wrong preprocessing)",
        found="preprocessing",
        source=Model(zoo="keras", front="tf"),
        right=Model(zoo="torch-port", front="tf"),
        wrong=Model(zoo="torch-port", front="torch"),
        how="the target prepares pictures as PyTorch's models want them (mean and deviation), the source as Keras' do (−1 to 1)",
        edits="the scale and the shift in front",
        kinds=("inputs", "parameters"),
        fewest=2,
    ),
    Case(
        id="mobilenet-tf-keras",
        network="mobilenet_v2",
        conversion="TF → Keras",
        theirs="0 % without edits (49 %)",
        found="preprocessing",
        source=Model(zoo="keras", front="tf", route=TF),
        right=Model(zoo="keras", front="tf"),
        wrong=Model(zoo="keras", front="unit"),
        how="the target scales pictures to 0 to 1, the source to −1 to 1",
        edits="scale and offset of the Rescaling layer in front",
        kinds=("inputs", "hyperparameters", "parameters"),
        fewest=2,
    ),
    Case(
        id="mobilenet-tf-tflite",
        network="mobilenet_v2",
        conversion="TF → TFLite",
        theirs="0 %",
        found="quantised weights",
        source=Model(zoo="keras", route=TF),
        right=Model(zoo="keras", route=TF_TFLITE),
        wrong=Model(zoo="keras", route=TF_TFLITE, spoiled=("dequantised",)),
        how=SILENT,
        edits="one weight per convolution and the dense layer's",
        kinds=("precision", "parameters"),
    ),
    Case(
        id="mobilenet-torch-keras",
        network="mobilenet_v2",
        conversion="PyTorch → Keras",
        theirs="0 %, one transpose (62.6 %)",
        found="layout",
        source=Model(zoo="torch"),
        right=Model(zoo="keras-port", entry="transpose"),
        wrong=Model(zoo="keras-port", entry="swapped"),
        how="the transposition from NCHW to NHWC also swaps height and width",
        edits="one: the order of axes of the Permute",
        kinds=("structure",),
        fewest=1,
    ),
    Case(
        id="mobilenet-torch-tf",
        network="mobilenet_v2",
        conversion="PyTorch → TF",
        theirs="0 % without edits (86.1 %)",
        found="preprocessing",
        source=Model(zoo="torch", front="torch"),
        right=Model(zoo="keras-port", front="torch", route=TF),
        wrong=Model(zoo="keras-port", front="tf", route=TF),
        how="the target prepares pictures as Keras' models want them (−1 to 1), the source as PyTorch's do (mean and deviation)",
        edits="the scale and the shift in front",
        kinds=("inputs", "parameters"),
        fewest=2,
    ),
    Case(
        id="resnet-keras-tflite",
        network="resnet101",
        conversion="Keras → TFLite",
        theirs="0–18.8 % over runs",
        found="mixed: pads, graph, quantised weights",
        source=Model(zoo="keras"),
        right=Model(zoo="keras", route=KERAS_TFLITE),
        wrong=Model(zoo="keras", route=KERAS_TFLITE, spoiled=("dequantised-stage", "pads", "activation")),
        how="the pads in front of the first convolution are 2 and 4 instead of 3 and 3, a convolution of the third stage has lost its"
        " ReLU, and the weights of the last stage are those of the int8 grid, as float32",
        edits="the pads, the activation, and the weights of the last stage",
        kinds=("precision", "parameters", "hyperparameters", "structure"),
    ),
    Case(
        id="resnet-keras-torch",
        network="resnet101",
        conversion="Keras → PyTorch",
        theirs="0 % or 91.8 % over runs",
        found="preprocessing",
        source=Model(zoo="keras", front="caffe"),
        right=Model(zoo="torch-port", front="caffe"),
        wrong=Model(zoo="torch-port", front="torch"),
        how="the target prepares pictures as PyTorch's models want them (RGB, mean and deviation), the source as Keras' ResNet does (BGR, mean)",
        edits="the scale and the shift in front, and the order of the channels",
        kinds=("inputs", "parameters", "structure"),
        fewest=3,
    ),
    Case(
        id="resnet-tf-keras",
        network="resnet101",
        conversion="TF → Keras",
        theirs="0 %",
        found="input dimensions",
        source=Model(zoo="keras", route=TF),
        right=Model(zoo="keras"),
        wrong=Model(zoo="keras", taller=16),
        how="the target declares pictures that are 16 pixels taller",
        edits="one: the dimensions of the input",
        kinds=("incomparable",),
        fewest=1,
    ),
    Case(
        id="resnet-tf-tflite",
        network="resnet101",
        conversion="TF → TFLite",
        theirs="0 %",
        found="none visible",
        source=Model(zoo="keras", route=TF),
        right=Model(zoo="keras", route=TF_TFLITE),
        wrong=Model(zoo="keras", epsilon=1e-3, route=TF_TFLITE),
        how="BatchNorm folded with Keras' usual epsilon (1e-3) instead of the network's (1.001e-5), which no graph shows (our choice:"
        " the study found nothing visible)",
        edits="weight and bias of every convolution",
        kinds=("parameters",),
        fewest=208,
    ),
    Case(
        id="resnet-tflite-keras",
        network="resnet101",
        conversion="TFLite → Keras",
        theirs="0 %",
        found="preprocessing",
        source=Model(zoo="keras", front="caffe", route=KERAS_TFLITE),
        right=Model(zoo="keras", front="caffe"),
        wrong=Model(zoo="keras", front="caffe-rgb"),
        how="the target does not reverse the channels (RGB for BGR) before it takes the means away",
        edits="one: the channels reversed in front",
        kinds=("inputs", "structure"),
        fewest=1,
    ),
    Case(
        id="resnet-torch-tf",
        network="resnet101",
        conversion="PyTorch → TF",
        theirs="0 % without edits",
        found="preprocessing",
        source=Model(zoo="torch", front="torch"),
        right=Model(zoo="keras-port", front="torch", route=TF),
        wrong=Model(zoo="keras-port", front="caffe", route=TF),
        how="the target prepares pictures as Keras' ResNet wants them (BGR, mean), the source as PyTorch's do (RGB, mean and deviation)",
        edits="the scale and the shift in front, and the order of the channels",
        kinds=("inputs", "parameters", "structure"),
        fewest=3,
    ),
    Case(
        id="resnet-torch-tflite",
        network="resnet101",
        conversion="PyTorch → TFLite",
        theirs="0 %, one input dimension",
        found="input dimensions",
        source=Model(zoo="torch"),
        right=Model(zoo="torch", route=TORCH_TFLITE),
        wrong=Model(zoo="torch", taller=16, route=TORCH_TFLITE),
        how="the target was converted for pictures that are 16 pixels taller",
        edits="one: the dimensions of the input",
        kinds=("incomparable",),
        fewest=1,
    ),
)

BY_ID = {case.id: case for case in CASES}
