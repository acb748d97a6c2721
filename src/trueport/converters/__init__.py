"""The converter files, as a literal table: module name -> module. One file per conversion tool."""

from __future__ import annotations

from trueport.converters import (
    coreml,
    executorch,
    jax_export,
    keras_export,
    keras_torch,
    litert_torch,
    old_onnx2keras,
    old_onnx_tf,
    old_onnxmltools,
    old_tf2onnx,
    old_tflite2onnx,
    onnx2tf,
    onnx2torch,
    onnx_keras,
    onnx_passes,
    openvino,
    tf2onnx,
    tflite_converter,
    torch_onnx,
    tvm,
)
from trueport.frameworks import fake

CONVERTERS = {
    "torch_onnx": torch_onnx,
    "tf2onnx": tf2onnx,
    "keras_export": keras_export,
    "tflite_converter": tflite_converter,
    "litert_torch": litert_torch,
    "onnx2torch": onnx2torch,
    "onnx2tf": onnx2tf,
    "keras_torch": keras_torch,
    "onnx_keras": onnx_keras,
    "jax_export": jax_export,
    "onnx_passes": onnx_passes,
    "openvino": openvino,
    "coreml": coreml,
    "tvm": tvm,
    "executorch": executorch,
    "old_tf2onnx": old_tf2onnx,
    "old_onnxmltools": old_onnxmltools,
    "old_onnx2keras": old_onnx2keras,
    "old_onnx_tf": old_onnx_tf,
    "old_tflite2onnx": old_tflite2onnx,
    "fake": fake,
}
