"""A Keras 3 file on Keras' PyTorch backend, as a module that can be traced."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from trueport.frameworks import _keras_files as files
from trueport.frameworks import _keras_model as models
from trueport.frameworks._base import Unsupported, Untrusted

ALIASES = {
    "absolute": "abs",
    "concatenate": "cat",
    "concat": "cat",
    "divide": "div",
    "true_divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "moveaxis": "movedim",
    "swapaxes": "transpose",
}
"""PyTorch operator that Keras calls -> the name of the same one that coremltools converts."""


def know_aliases() -> None:
    """Let coremltools convert operators under their second names, where it knows the first alone."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known

    for alias, name in ALIASES.items():
        rule = known.get_func(name)
        if rule is not None and known.get_func(alias) is None:
            known.set_func_by_name(rule, alias)


def on_torch(source: str, *, trust: bool) -> Any:
    """The model as a module from tensors, in the order of its inputs, to tensors. Raises Untrusted, Unsupported."""
    place = Path(source)
    carried = sorted(set(files.code_in(files.config(place))))
    if carried and not trust:
        raise Untrusted(
            f"{source}: loading it would run code that the file carries ({', '.join(carried[:3])}); "
            "pass --trust if you know where it comes from"
        )
    if files.is_legacy(place):
        raise Unsupported("a Keras 2 file does not load in Keras 3, which is the Keras that runs on PyTorch")
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    if keras.backend.backend() != "torch":
        raise Unsupported(f"Keras runs on {keras.backend.backend()} in this process; it must run on PyTorch")
    loaded = models.describe(_open(keras, place, trust=trust), keras, legacy=False)
    return _module(loaded)


def _open(keras: Any, place: Path, *, trust: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        archive = place.read_bytes()[:4] == files.ZIP
        link = Path(folder) / ("model.keras" if archive else "model.h5")  # Keras goes by the suffix alone
        link.symlink_to(place.absolute())
        return keras.models.load_model(str(link), compile=False, safe_mode=not trust)


def _module(loaded: models.Loaded) -> Any:
    import torch

    structure, _ = models._structures(loaded.model, legacy=False)

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.model

        def forward(self, *flat: Any) -> Any:
            if structure is None:
                packed: Any = flat[0] if len(flat) == 1 else list(flat)
            else:
                packed = loaded.keras.tree.pack_sequence_as(structure, list(flat))
            found = loaded.keras.tree.flatten(self.model(packed, training=False))
            return found[0] if len(found) == 1 else tuple(found)

    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    return Flat().eval()
