"""A TFLite file of nothing but a non-maximum suppression, as the converter writes it. Runs in a worker."""

from __future__ import annotations

import numpy as np

BOXES, MOST, OVERLAP, SCORE = 7, 5, 0.5, 0.25


def suppression(g):
    """indices = NonMaxSuppression(boxes [7, 4], scores [7]): at most 5, overlap 0.5, scores above 0.25."""
    boxes, scores = g.tensor("boxes", "float32", [BOXES, 4]), g.tensor("scores", "float32", [BOXES])
    most = g.constant("most", np.array(MOST, np.int32))
    overlap, least = (g.constant(name, np.array(value, np.float32)) for name, value in (("o", OVERLAP), ("s", SCORE)))
    indices = g.tensor("indices", "int32", [MOST], free=[-1])
    count = g.tensor("count", "int32", [])
    g.operator("NON_MAX_SUPPRESSION_V4", [boxes, scores, most, overlap, least], [indices, count])
    g.ends([boxes, scores], [indices])


def write(folder):
    """Write it; returns name -> path."""
    import tflite_models

    kept = tflite_models.MODELS
    try:
        tflite_models.MODELS = {"suppression": suppression}
        return tflite_models.write(folder)
    finally:
        tflite_models.MODELS = kept
