"""A folder of pictures as inputs: which are used, how they are preprocessed, and what the model's shape tells about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from trueport import preprocess as preprocessing
from trueport.artifact import Signature, TensorSpec
from trueport.dtypes import value_dtype
from trueport.errors import UsageError
from trueport.feeds.arrange import from_arrays
from trueport.feeds.arrays import MAX_BYTES
from trueport.feeds.dims import channel_axis
from trueport.feeds.labels import load_labels, pictures_in
from trueport.feeds.types import Feeds
from trueport.preprocess import Preprocess

MAX_PIXELS = 100_000_000
"""Pixels of one picture, beyond which it is refused before it is decoded (a decompression bomb)."""


def load_pictures(
    folder: Path,
    signature: Signature,
    described: Preprocess | str | Path | None,
    limit: int | None,
    labels: np.ndarray | Path | None,
) -> Feeds:
    """Read, preprocess and stack the pictures of a folder; see `feeds.load`."""
    spec = picture_input(signature)
    files = pictures_in(folder)
    if not files:
        raise UsageError(f"{folder} holds no pictures (.jpg, .png, ...); for arrays name the .npz file itself")
    recipe, notes = _recipe(folder, signature, described)
    chosen = spread(len(files), limit)
    numbers = _numbers(folder, files, labels)
    batch = spec.shape[0] if spec.shape and len(spec.shape) == 4 else None
    if isinstance(batch, int) and len(chosen) % batch:
        chosen = chosen[: len(chosen) - len(chosen) % batch]
        if not len(chosen):
            raise UsageError(f"the model takes batches of exactly {batch} pictures; give at least so many")
    if len(chosen) < len(files):
        notes.append(f"{len(chosen)} of the {len(files)} pictures were used, spread evenly over the folder")
    stack = _stack([files[index] for index in chosen], recipe)
    return from_arrays(
        {spec.name: stack},
        signature,
        origin=str(folder),
        labels=None if numbers is None else numbers[chosen],
        notes=tuple(notes),
    )


def first_picture(folder: Path, described: Preprocess | str | Path | None) -> np.ndarray | None:
    """One preprocessed picture with its batch axis, [1, ...], for a model whose signature is not known yet.

    None without a description, because there is no shape to derive one from.
    """
    files = pictures_in(folder)
    if described is None:
        described = next((folder / name for name in preprocessing.FILES if (folder / name).is_file()), None)
    if not files or described is None:
        return None
    if isinstance(described, str):
        described = preprocessing.from_text(described)
    recipe = preprocessing.from_file(described) if isinstance(described, Path) else described
    return recipe.apply(open_picture(files[0]))[np.newaxis]


def _recipe(
    folder: Path, signature: Signature, described: Preprocess | str | Path | None
) -> tuple[Preprocess, list[str]]:
    if isinstance(described, Preprocess):
        return described, [f"preprocessing: {described}"]
    if isinstance(described, Path):
        return preprocessing.from_file(described), [f"preprocessing from {described.name}"]
    if described is not None:
        return preprocessing.from_text(described), [f"preprocessing: {described}"]
    for name in preprocessing.FILES:
        if (folder / name).is_file():
            return preprocessing.from_file(folder / name), [f"preprocessing from the folder's {name}"]
    recipe, said = default_for(signature)
    return recipe, [said]


def _numbers(folder: Path, files: list[Path], labels: np.ndarray | Path | None) -> np.ndarray | None:
    """Labels for all `files`; a labels.csv in the folder is taken without being asked for."""
    names = [file.relative_to(folder).as_posix() for file in files]
    if labels is None:
        table = folder / "labels.csv"
        return load_labels(table, files=names) if table.is_file() else None
    found = load_labels(labels, files=names) if isinstance(labels, Path) else labels
    if len(found) != len(files):
        raise UsageError(f"there are {len(found)} labels for {len(files)} pictures; give one label per picture")
    return found


def spread(count: int, limit: int | None) -> np.ndarray:
    """At most `limit` of `count` places, evenly spread, so that a sorted folder gives every class."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _stack(files: list[Path], recipe: Preprocess) -> np.ndarray:
    """All samples, [N, ...]; every picture must come out in one shape."""
    first = recipe.apply(open_picture(files[0]))
    if first.nbytes * len(files) > MAX_BYTES:
        raise UsageError(
            f"{len(files)} pictures of {first.nbytes >> 20} MiB each take more than {MAX_BYTES >> 30} GiB; use fewer, or a smaller size"
        )
    stack = np.empty((len(files), *first.shape), first.dtype)
    stack[0] = first
    for row, file in enumerate(files[1:], start=1):
        sample = recipe.apply(open_picture(file))
        if sample.shape != first.shape:
            raise UsageError(
                f"{file.name} comes out as {list(sample.shape)}, {files[0].name} as {list(first.shape)}; give a size to resize to"
            )
        stack[row] = sample
    return stack


def open_picture(file: Path) -> Image.Image:
    """Decode a picture. Raises UsageError when it is damaged or far too large."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(
                    f"{file} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}; make it smaller"
                )
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} is no readable picture ({str(error)[:100]})") from error


# Derived from the model


def default_for(signature: Signature) -> tuple[Preprocess, str]:
    """Size, layout and channels from the shape of the model's one picture input, values 0..255, with the sentence that says so.

    Raises UsageError when the signature does not tell; the message says what to write.
    """
    spec = picture_input(signature)
    layout, size, channels = picture_shape(spec)
    if size is None:
        raise UsageError(f"input {spec.name} has open sides; say to which size pictures go, for example size=224x224")
    dtype = value_dtype(spec)
    found = Preprocess(
        size=size,
        layout=layout,
        order="GREY" if channels == 1 else "RGB",
        dtype=str(dtype) if dtype is not None else "float32",
    )
    said = f"no preprocessing was described: pictures were stretched to {size[0]}x{size[1]}, {found.order}, values 0 to 255, {layout}"
    return found, said


def picture_input(signature: Signature) -> TensorSpec:
    """The only input, when it can take pictures."""
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UsageError(
            f"a folder of pictures feeds a model with one input; this one takes {names or 'none'}: use an .npz"
        )
    return signature.inputs[0]


def picture_shape(spec: TensorSpec) -> tuple[str, tuple[int, int] | None, int]:
    """(layout, (height, width) or None where open, channels) of a picture input. Raises UsageError when it is none."""
    shape = spec.shape or ()
    cure = "describe the preprocessing, or give an .npz"
    channel = channel_axis(shape)
    if channel is None and len(shape) in (3, 4) and len(shape) - (len(shape) == 4) == 3:
        raise UsageError(f"input {spec.name} of shape {list(shape)} shows no channel axis; {cure}")
    if channel is None or shape[channel] == 4:
        raise UsageError(
            f"input {spec.name} of shape {None if spec.shape is None else list(shape)} takes no RGB or grey pictures; {cure}"
        )
    sides = [dim for axis, dim in enumerate(shape) if axis >= len(shape) - 3 and axis != channel]
    whole = tuple(dim for dim in sides if isinstance(dim, int))
    size = (whole[0], whole[1]) if len(whole) == 2 else None
    channels = shape[channel]
    return ("NHWC" if channel == len(shape) - 1 else "NCHW"), size, channels if isinstance(channels, int) else 3
