"""Which optimiser passes ONNX Runtime applies to a cut of a model, so that a wrong one can be found by leaving it out.

ONNX Runtime says in its log which of its transformers changed a graph. Those that consist of many small rules report
as one; the rules can be left out one by one, but only by a name that has to be known.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from trueport.frameworks import _onnx_cut, _onnx_run

_MODIFIED = re.compile(r"GraphTransformer (\S+) modified: 1")
_RULE_BASED = "RuleBasedTransformer"
RULES = (
    "CastChainElimination",
    "CastElimination",
    "ClipQuantRewrite",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "ExpandElimination",
    "FuseReluClip",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "LabelEncoderFusion",
    "MatMul_BatchNormalization_Fusion",
    "NoopElimination",
    "NotWhereFusion",
    "Pad_Fusion",
    "PreShapeNodeElimination",
    "ReluQuantRewrite",
    "UnsqueezeElimination",
)
"""The rules inside ONNX Runtime's rule-based transformers. A name that a version lacks does no harm."""


def candidates(path: str, given: Mapping[str, Sequence[int]], wanted: str) -> dict[str, list[str]]:
    """Return variants for `replay`: "levels", from little to much optimisation, and "passes", each without one pass.

    given: name -> shape of one run of the values that are put in. Only passes that changed this cut are listed, and
    the rules of rule-based ones that did.
    """
    shapes = {name: list(shape) for name, shape in given.items()}
    log = _written(lambda: _onnx_cut.load(path, "default", shapes, [wanted], severity=1))
    names = list(dict.fromkeys(_MODIFIED.findall(log)))
    if any(name.endswith(_RULE_BASED) for name in names):
        names += RULES
    passes = [name for name in dict.fromkeys(names) if not name.endswith(_RULE_BASED)]
    return {"levels": list(_onnx_run.LEVELS), "passes": [_onnx_run.WITHOUT + name for name in passes]}


def _written(action: Callable[[], Any]) -> str:
    """Return what native code writes to standard error meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            action()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
