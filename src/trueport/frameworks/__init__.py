"""The framework files, as a literal table: name -> module. One file per framework."""

from __future__ import annotations

from trueport.frameworks import coreml, executorch, fake, jax, keras, onnx, openvino, tensorflow, tflite, torch, tvm

FRAMEWORKS = {
    "fake": fake,
    "coreml": coreml,
    "onnx": onnx,
    "tvm": tvm,
    "executorch": executorch,
    "torch": torch,
    "keras": keras,
    "tensorflow": tensorflow,
    "tflite": tflite,
    "openvino": openvino,
    "jax": jax,
}
"""Order matters where two could claim one file: the earlier is asked first."""
