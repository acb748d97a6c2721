"""Decides how attributes in ONNX vocabulary are said as a Keras layer's hyperparameters. Runs in a worker.

It is the way back of `_keras_attributes`, and asks that one whether the value that was written reads as it should.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _keras_attributes as views
from trueport.frameworks._base import Unsupported

ACTIVATIONS = {
    **{operator: name for name, operator in reversed(list(views.ACTIVATIONS.items())) if name != "relu6"},
    "Relu6": "relu6",
    "Silu": "silu",
}
"""ONNX operator -> Keras activation."""


class _Layer:
    """A configuration in the shape of a layer, for `describe`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def get_config(self) -> dict[str, Any]:
        """The configuration."""
        return self.config


def described(whole: Mapping[str, Any], *, legacy: bool) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of a layer in the configuration, as `graph` shows them."""
    shape = type(str(whole["class_name"]), (_Layer,), {})
    return views.describe(shape(whole["config"]), legacy=legacy)


def set_hyperparameter(whole: dict[str, Any], attribute: str, value: Any, *, legacy: bool) -> bool:
    """Give an attribute a value by the layer's own hyperparameters; False when it has none that says it.

    What was written is read back as `graph` shows it, so a value that Keras would say otherwise is refused.
    """
    config, kind = whole["config"], str(whole["class_name"])
    for key, new in _candidates(kind, config, attribute, value):
        if key not in config:
            continue
        before = config[key]
        config[key] = new
        shown = described(whole, legacy=legacy)[1]
        if attribute in config or _same(shown.get(attribute), value):
            return True
        config[key] = before
    return False


def _same(shown: Any, value: Any) -> bool:
    """Whether what is shown is what was asked for; None asks for nothing to be shown."""
    if value is None or shown is None:
        return shown is None and (value is None or value in ("Identity", "linear"))
    if isinstance(value, (list, tuple)) or isinstance(shown, (list, tuple)):
        return np.array_equal(np.ravel(shown), np.ravel(value))
    return bool(shown == value or (isinstance(value, float) and np.isclose(float(shown), value, rtol=1e-7)))


def _candidates(kind: str, config: dict[str, Any], attribute: str, value: Any) -> list[tuple[str, Any]]:
    """(hyperparameter, its new value) that might say an attribute, the most likely first."""
    found: list[tuple[str, Any]] = []
    if attribute in ("pads", "crops"):
        found += [(key, _pairs(kind, value)) for key in ("padding", "cropping") if not isinstance(config.get(key), str)]
    elif attribute == "auto_pad":
        said = {**{key: key for key in views.PADDINGS}, **{word: key for key, word in views.PADDINGS.items()}}
        found += [("padding", said[value])] if isinstance(config.get("padding"), str) and value in said else []
    elif attribute in ("activation", "recurrent_activation"):
        found.append((attribute, activation_name(value)))
    elif attribute == "hidden_size":
        found.append(("units", int(value)))
    elif attribute == "num_groups":
        found.append(("groups", int(value)))
    for key, old in config.items():
        if key == attribute and attribute not in ("activation", "recurrent_activation"):
            found.append((key, _like(old, value)))
        elif key in views.NAMES and views.NAMES[key][0] == attribute:
            found.append((key, _written(key, old, value)))
    return found


def _written(key: str, old: Any, value: Any) -> Any:
    """A value in ONNX words as a hyperparameter has it. Raises Unsupported where it has no such value."""
    if value is None:
        return None
    if key == "go_backwards":
        return value == "reverse"
    if key == "reset_after":
        return bool(value)
    if key == "interpolation":
        return {"linear": "bilinear", "cubic": "bicubic"}.get(value, value)
    if key == "approximate":
        return value == "tanh"
    if key in ("dims", "target_shape"):
        sizes = [int(item) for item in value]
        if not sizes or sizes[0] not in ((0, -1) if key == "target_shape" else (0,)):
            raise Unsupported("Keras layers leave the batch axis where it is")
        return sizes[1:]
    return _like(old, value)


def _like(old: Any, value: Any) -> Any:
    """A value in the form of the old one: a list of as many numbers, or one number."""
    flat = (
        [item.item() if isinstance(item, np.generic) else item for item in np.ravel(value)]
        if (isinstance(value, (list, tuple, np.ndarray)))
        else value
    )
    if isinstance(old, (list, tuple)):
        return flat if isinstance(flat, list) else [flat] * len(old)
    return flat[0] if isinstance(flat, list) and len(flat) == 1 else flat


def _pairs(kind: str, pads: Sequence[int]) -> Any:
    """ONNX pads (all begins, then all ends) as a layer has them."""
    half = len(pads) // 2
    pairs = [[int(begin), int(end)] for begin, end in zip(pads[:half], pads[half:])]
    return pairs[0] if kind.endswith("1D") else pairs


def activation_name(value: Any) -> str:
    """Keras's name of an activation given in ONNX words or its own. Raises Unsupported for one that Keras lacks."""
    if value is None:
        return "linear"
    if value in views.ACTIVATIONS:
        return str(value)
    if value not in ACTIVATIONS:
        raise Unsupported(f"Keras has no activation for '{value}'")
    return ACTIVATIONS[value]


def copied(whole: dict[str, Any]) -> dict[str, Any]:
    """A layer's entry, to change without the old one."""
    return copy.deepcopy(whole)
