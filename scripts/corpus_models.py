"""Worker-side: the two models of the corpus that can only be compared after a rewrite, rewritten without changing a number.

`slim_savedmodel` supplies a function that the file's Lambda layers call but do not contain; `silero_core` takes the
network out of the wrapper that keeps its state and context.
"""

from __future__ import annotations

from typing import Any


def slim_savedmodel(path: str, out: str) -> dict[str, Any]:
    """Load slim_reshape.h5 with its five Lambda layers written out, and save it as a SavedModel at `out`.

    Three layers call `bilinear_resize(x, size)` of the notebook that trained the model; its corner convention (corners
    aligned) is taken from the authors' TFLite twin, for the Keras file does not hold it. The other two are a softmax
    and the slice [0:1, 0:512, 0:512, 1:2], which their byte code spells out.
    """
    import tensorflow as tf
    import tf_keras

    sizes = {"lambda": 32, "lambda_1": 64, "lambda_2": 128}

    class WrittenOut(tf_keras.layers.Layer):  # type: ignore[misc]
        """What the Lambda layer of that name computes."""

        def __init__(self, name: str, **given: Any) -> None:
            super().__init__(name=name, trainable=given.get("trainable", True), dtype=given.get("dtype"))

        def call(self, x: Any) -> Any:
            if self.name in sizes:
                size = [sizes[self.name]] * 2
                return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)
            return tf.nn.softmax(x) if self.name == "lambda_3" else tf.strided_slice(x, [0, 0, 0, 1], [1, 512, 512, 2])

    model = tf_keras.models.load_model(path, compile=False, custom_objects={"Lambda": WrittenOut})
    fixed = tf.function(lambda ip: {"mask": model(ip, training=False)})
    signature = fixed.get_concrete_function(tf.TensorSpec([1, 512, 512, 3], tf.float32, name="ip"))
    holder = tf.Module()
    holder.model = model
    tf.saved_model.save(holder, out, signatures=signature)
    return {"layers": sorted(layer.name for layer in model.layers if isinstance(layer, WrittenOut))}


def silero_core(path: str, out: str) -> dict[str, Any]:
    """Save the 16 kHz network inside silero_vad.jit as a TorchScript of (input [B, 576], state [2, B, 128], sr)."""
    import torch

    inner = torch.jit.load(path)._model

    class Core(torch.nn.Module):  # type: ignore[misc]
        """Takes the sample rate too, as the ONNX twins do, which do not use it at 16 kHz."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input: torch.Tensor, state: torch.Tensor, sr: int) -> tuple[torch.Tensor, torch.Tensor]:
            result: tuple[torch.Tensor, torch.Tensor] = self.inner(input, state)
            return result

    torch.jit.script(Core().eval()).save(out)
    return {"parameters": sum(p.numel() for p in inner.parameters())}
