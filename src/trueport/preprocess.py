"""How a picture becomes a model's input, as data that can be written down, sent along and applied again.

Order of work: decode, colour order, resize, crop, `value * scale + offset`, `(value - mean) / std` per channel, layout, dtype.
Mean and std are in the units after scaling and in the order of the final channels.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trueport.errors import UsageError

ORDERS = ("RGB", "BGR", "GREY")
LAYOUTS = ("NHWC", "NCHW", "NHW")
CROPS = ("none", "center", "first")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
SAMPLED = ("nearest-floor", "bilinear-corner", "bicubic-sharp", "area")
"""Ways of resizing that Pillow does not have. nearest-floor: OpenCV's nearest; bilinear-corner: the old bilinear of
TensorFlow 1, whose pixels sit at their corners; bicubic-sharp: the bicubic of OpenCV and PyTorch (a = -0.75);
area: the mean of what a pixel covers (OpenCV INTER_AREA, tf.image "area")."""
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64")
FILES = ("preprocess.json", "preprocess.toml")
"""What a folder of images may hold beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """One description. size: (height, width) of the result, None keeps the picture's own.

    crop "none" stretches to `size`; "center" scales the short side to `short_side` (or just enough to cover `size`)
    and cuts the middle; "first" cuts the middle out of the picture, `fraction` of the largest part with the sides of
    `size`, and scales that. antialias: whether shrinking averages over what a pixel covers, as Pillow does, or samples
    single points, as OpenCV, tf.image.resize and PyTorch do unless told otherwise. rounded: whether resized values are
    whole numbers again (Pillow, OpenCV) or not (tf.image.resize, PyTorch). mean, std: one number, or one per channel.
    """

    size: tuple[int, int] | None = None
    resize: str = "bilinear"
    crop: str = "none"
    short_side: int | None = None
    fraction: float = 1.0
    antialias: bool = True
    rounded: bool = True
    order: str = "RGB"
    scale: float = 1.0
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NHWC"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        channels = 1 if self.order == "GREY" else 3
        for name, allowed in (
            ("resize", (*FILTERS, *SAMPLED)),
            ("crop", CROPS),
            ("order", ORDERS),
            ("layout", LAYOUTS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"preprocessing: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UsageError(f"preprocessing: size must be HEIGHTxWIDTH, both at least 1, not {self.size}")
        if self.short_side is not None and (self.size is None or self.short_side < max(self.size)):
            raise UsageError(
                "preprocessing: short_side needs a size, and must be at least as large as both sides of it"
            )
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(f"preprocessing: fraction must be above 0 and at most 1, not {self.fraction}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise UsageError(f"preprocessing: {name} needs 1 or {channels} numbers, not {len(getattr(self, name))}")
        numbers = (self.scale, self.offset, *self.mean, *self.std)
        if not all(np.isfinite(number) for number in numbers) or self.scale == 0 or 0 in self.std:
            raise UsageError("preprocessing: scale and std must not be 0, and all numbers must be finite")
        if self.layout == "NHW" and channels != 1:
            raise UsageError("preprocessing: layout NHW has no channels, so order must be GREY")

    def to_json(self) -> dict[str, Any]:
        """The JSON form, which `from_mapping` reads back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """The inline form, which `from_text` reads back."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value != field.default:
                joint = "x" if field.name == "size" else "/"
                parts.append(f"{field.name}={joint.join(map(str, value)) if isinstance(value, tuple) else value}")
        return ",".join(parts)

    def apply(self, image: Image.Image) -> np.ndarray:
        """One picture to one sample: [H, W, C], [C, H, W] or [H, W] (the layout without N), in `dtype`."""
        values = self._fit(np.asarray(_as_colours(image, self.order)))  # rounded to the dtype once, at the end
        values = values.astype(np.float64).reshape(*values.shape[:2], -1)
        if self.order == "BGR":
            values = values[..., ::-1]
        values = values * self.scale + self.offset
        values = (values - np.array(self.mean)) / np.array(self.std)
        if self.layout != "NHWC":
            values = values[..., 0] if self.layout == "NHW" else values.transpose(2, 0, 1)
        return self._typed(values)

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        """A picture [H, W] or [H, W, C], uint8, resized and cropped to `size`."""
        if self.size is None:
            return picture
        height, width = self.size
        tall, wide = picture.shape[:2]
        if self.crop == "none":
            return self._resized(picture, height, width)
        if self.crop == "first":
            share = min(tall / height, wide / width) * self.fraction
            cut = max(1, round(height * share)), max(1, round(width * share))
            return self._resized(_middle(picture, *cut), height, width)
        factor = self.short_side / min(tall, wide) if self.short_side else max(width / wide, height / tall)
        scaled = self._resized(picture, max(height, round(tall * factor)), max(width, round(wide * factor)))
        return _middle(scaled, height, width)

    def _resized(self, picture: np.ndarray, height: int, width: int) -> np.ndarray:
        if picture.shape[:2] == (height, width):
            return picture
        if self.resize == "nearest" or (self.resize in FILTERS and self.antialias and self.rounded):
            return np.asarray(Image.fromarray(picture).resize((width, height), FILTERS[self.resize]))
        rows, columns = (
            _weights(have, want, self.resize, antialias=self.antialias)
            for have, want in zip(picture.shape[:2], (height, width), strict=True)
        )
        values = np.moveaxis(np.tensordot(rows, picture.astype(np.float64), axes=(1, 0)), 1, 0)
        values = np.moveaxis(np.tensordot(columns, values, axes=(1, 0)), 1, 0)
        return np.clip(np.rint(values), 0.0, 255.0) if self.rounded else np.asarray(values)

    def _typed(self, values: np.ndarray) -> np.ndarray:
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return np.ascontiguousarray(values, dtype=dtype)
        info, whole = np.iinfo(dtype), np.rint(values)
        if whole.size and (whole.min() < info.min or whole.max() > info.max):
            raise UsageError(
                f"preprocessing: values from {whole.min():g} to {whole.max():g} do not fit {dtype}; check scale, offset, mean and std"
            )
        return np.ascontiguousarray(whole, dtype=dtype)


def _as_colours(image: Image.Image, order: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # deeper than 8 bits: Pillow would clip at 255
        raise UsageError(f"pictures of mode {image.mode} are not taken; save them with 8 bits per channel")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if order == "GREY" else "RGB")


# Resizing


def _middle(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


KERNELS: Mapping[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "box": (0.5, lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)),
    "bilinear": (1.0, lambda x: np.maximum(0.0, 1.0 - np.abs(x))),
    "bilinear-corner": (1.0, lambda x: np.maximum(0.0, 1.0 - np.abs(x))),
    "bicubic": (2.0, lambda x: _cubic(np.abs(x), -0.5)),
    "bicubic-sharp": (2.0, lambda x: _cubic(np.abs(x), -0.75)),
    "lanczos": (3.0, lambda x: np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)),
}
"""Way of resizing -> (half width, weight at a distance), in pixels of the coarser of the two pictures."""


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981) at distances x >= 0."""
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _weights(have: int, want: int, how: str, *, antialias: bool) -> np.ndarray:
    """Share of each of `have` pixels in each of `want` pixels along one axis, [want, have]; rows add up to 1."""
    step, places = have / want, np.arange(want)
    if how == "nearest-floor":
        return np.eye(have)[np.minimum((places * step).astype(np.int64), have - 1)]
    if how == "area":
        edges = np.arange(have)
        low, high = (places * step)[:, None], ((places + 1) * step)[:, None]
        found = np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0.0, None)
    else:
        reach, kernel = KERNELS[how]
        centres = places * step if how == "bilinear-corner" else (places + 0.5) * step - 0.5
        stretch = max(1.0, step) if antialias and how != "bilinear-corner" else 1.0
        taps = np.floor(centres)[:, None] + np.arange(-math.ceil(reach * stretch), math.ceil(reach * stretch) + 2)
        weights = kernel((taps - centres[:, None]) / stretch)
        if antialias:  # beyond the rim there is nothing, without it the rim goes on
            weights = np.where((taps >= 0) & (taps < have), weights, 0.0)
        found = np.zeros((want, have))
        np.add.at(found, (places[:, None], np.clip(taps, 0, have - 1).astype(np.int64)), weights)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


# Reading a description


def from_text(text: str) -> Preprocess:
    """Read `size=32x32,scale=1/255,mean=.485/.456/.406,layout=NCHW`, or the path of a .json or .toml file.

    Sides are HEIGHTxWIDTH; several numbers are separated by "/" or ";", except in scale, offset: there 1/255 is a fraction.
    """
    text = text.strip()
    if text.endswith((".json", ".toml")):
        return from_file(Path(text))
    given: dict[str, Any] = {}
    for part in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(
                f"preprocessing: {part!r} is not NAME=VALUE (several numbers are separated by '/', as in mean=.485/.456/.406)"
            )
        if name.strip() in given:
            raise UsageError(f"preprocessing: {name.strip()} is given twice")
        given[name.strip()] = value.strip()
    return from_mapping(given)


def from_file(path: Path) -> Preprocess:
    """Read a description from a .json or .toml file."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file with a preprocessing")
    try:
        text = path.read_text(encoding="utf-8")
        given = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable {path.suffix[1:].upper()} ({str(error)[:120]})") from error
    if not isinstance(given, dict):
        raise UsageError(f"{path} must hold one object with the fields of a preprocessing")
    return from_mapping(given)


def from_mapping(given: Mapping[str, Any]) -> Preprocess:
    """Read a description from names and values; values may be text. Raises UsageError that lists the fields."""
    unknown = [name for name in given if name not in _READERS]
    if unknown:
        raise UsageError(
            f"preprocessing: unknown {', '.join(map(repr, unknown))}; the fields are {', '.join(_READERS)}"
        )
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values[name] = None if value is None and name in ("size", "short_side") else _READERS[name](value)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise UsageError(f"preprocessing: {value!r} is no {name}; write for example {_EXAMPLES[name]}") from error
    return Preprocess(**values)


def _sides(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        parts: list[Any] = value.lower().split("x")
    else:
        parts = [value] if isinstance(value, int) else list(value)
    sides = tuple(_whole(part) for part in parts)
    return sides * 2 if len(sides) == 1 else sides


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str) and "/" in value:
        top, _, bottom = value.partition("/")
        return float(top) / float(bottom)
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.replace(";", "/").split("/")
    found = tuple(float(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    return found or _fail(value)


def _fail(value: Any) -> Any:
    raise ValueError(value)


def _truth(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return known[str(value).lower()] if str(value).lower() in known else bool(_fail(value))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else _fail(value)


def _colour(value: Any) -> str:
    return {"GRAY": "GREY", "GRAYSCALE": "GREY", "L": "GREY"}.get(_word(value).upper(), _word(value).upper())


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "size": _sides,
    "resize": lambda value: _word(value).lower(),
    "crop": lambda value: {"centre": "center"}.get(_word(value).lower(), _word(value).lower()),
    "short_side": _whole,
    "fraction": lambda value: _number(value),
    "antialias": lambda value: _truth(value),
    "rounded": lambda value: _truth(value),
    "order": _colour,
    "scale": _number,
    "offset": _number,
    "mean": _numbers,
    "std": _numbers,
    "layout": lambda value: _word(value).upper(),
    "dtype": _word,
}
_EXAMPLES = {
    "size": "224x224",
    "resize": "bilinear",
    "crop": "center",
    "short_side": "256",
    "fraction": "0.875",
    "antialias": "false",
    "rounded": "false",
    "order": "RGB",
    "scale": "1/255",
    "offset": "-1",
    "mean": ".485/.456/.406",
    "std": ".229/.224/.225",
    "layout": "NCHW",
    "dtype": "float32",
}
