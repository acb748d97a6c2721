"""How torchvision's and timm's constructors are called, and what their models take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trueport.frameworks import _zoo_scale
from trueport.frameworks._base import BadModel, Unsupported
from trueport.frameworks._zoo_names import fetched, line, unknown
from trueport.frameworks._zoo_torch import Made

SIDES = (64, 128)
"""Sides of pictures that are tried, when none is asked for, before the architecture's own."""
OWN_SIDE = 224
COUNT = 24
"""Pictures through which weights are scaled, at small sides; large ones cost memory."""
FEW = 12
LARGE = 160
FRAMES = 8
VIDEO, FLOW = "torchvision.models.video", "torchvision.models.optical_flow"
SEGMENTATION = "torchvision.models.segmentation"
CLASSES = {SEGMENTATION: 21, VIDEO: 400}
"""Classes of torchvision's own networks that are not ImageNet's."""
EXTRA: dict[str, dict[str, Any]] = {
    SEGMENTATION: {"weights_backbone": None},
    "googlenet": {"init_weights": True, "aux_logits": False},
    "inception_v3": {"init_weights": True, "aux_logits": False},
}
"""Arguments by architecture or group that keep a constructor from fetching weights or building what only training uses."""
LEFT_OUT = {
    "torchvision.models.detection": "it finds objects: the number of its results depends on the picture",
    "torchvision.models.quantization": "its operators are quantised",
}


def names(collection: str) -> list[str]:
    """Every architecture, sorted."""
    if collection == "timm":
        import timm

        return sorted(timm.list_models())
    from torchvision import models

    return sorted(name for name in models.list_models() if _module(name) not in LEFT_OUT)


def _module(name: str) -> str:
    """The module of torchvision that an architecture is from, without its own file's name."""
    from torchvision import models

    return str(models.get_model_builder(name).__module__).rpartition(".")[0]


def torchvision_model(name: str, options: Mapping[str, Any]) -> Made:
    """An architecture of torchvision. Raises BadModel, Unsupported."""
    from torchvision import models

    if name not in models.list_models():
        raise unknown("torchvision", name, names("torchvision"))
    group = _module(name)
    if group in LEFT_OUT:
        raise Unsupported(f"zoo:torchvision/{name} is left out: {LEFT_OUT[group]}")
    if options["weights"] == "hub":
        weights = models.get_model_weights(name).DEFAULT

        def load() -> Any:
            weights.get_state_dict(
                check_hash=True, weights_only=True
            )  # into the cache; refuses what is more than weights
            return models.get_model(name, weights=weights)

        side = options.get("size") or OWN_SIDE
        return _checked(name, fetched("torchvision", name, load), _data(group, side, options), trained=True)

    def built(side: int) -> Made:
        settings: dict[str, Any] = dict(EXTRA.get(name, EXTRA.get(group, {})))
        if group != FLOW:
            settings["num_classes"] = options.get("classes", CLASSES.get(group, 1000))
        if name.startswith("vit_"):
            settings["image_size"] = side
        return _checked(name, models.get_model(name, weights=None, **settings), _data(group, side, options))

    return _first(name, options, OWN_SIDE, built)


def _data(group: str, side: int, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if group == VIDEO:
        return {"video": _pictures((FRAMES, side, side, 3), options, count=FEW // 2)}
    if group == FLOW:
        pair = _pictures((side, side, 3), options, count=4), _pictures((side, side, 3), options, count=4, more=1)
        return {"first": pair[0], "second": pair[1]}
    return {"image": _pictures((side, side, 3), options)}


def _pictures(shape: tuple[int, ...], options: Mapping[str, Any], *, count: int | None = None, more: int = 0) -> Any:
    """Data with channels in front: [N, C, ...]."""
    wanted = count or (COUNT if max(shape) <= LARGE else FEW)
    seed = options.get("seed", 0) + more
    return np.moveaxis(_zoo_scale.pictures(max(wanted, options.get("batch") or 1), shape, seed), -1, 1).copy()


def timm_model(name: str, options: Mapping[str, Any]) -> Made:
    """An architecture of timm. Raises BadModel, Unsupported."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm", name, names("timm"))
    own = timm.models.get_pretrained_cfg(name)
    channels, side = (own.input_size[0], own.input_size[-1]) if own is not None else (3, OWN_SIDE)
    if options["weights"] == "hub":
        module = fetched("timm", name, lambda: timm.create_model(name, pretrained=True))
        wanted = options.get("size", side)
        return _checked(name, module, {"image": _pictures((wanted, wanted, channels), options)}, trained=True)

    def built(side: int) -> Made:
        settings = {"pretrained": False, "num_classes": options.get("classes", 1000)}
        try:
            module = timm.create_model(name, img_size=side, **settings)
        except TypeError:  # a convolutional network, which takes any size
            module = timm.create_model(name, **settings)
        return _checked(name, module, {"image": _pictures((side, side, channels), options)})

    return _first(name, options, side, built)


def _checked(name: str, module: Any, inputs: Mapping[str, np.ndarray], *, trained: bool = False) -> Made:
    """The module behind plain input names, after it ran once."""
    import torch

    module.eval()
    plain = _plain(module, tuple(inputs))
    with torch.no_grad():
        plain(**{key: torch.from_numpy(value[:2]) for key, value in inputs.items()})
    return Made(module=plain, inputs=inputs, trained=trained)


def _plain(module: Any, arguments: tuple[str, ...]) -> Any:
    """A module around another that has these argument names, which become the input names of the program."""
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = module

    class Pictures(Plain):
        def forward(self, image: Any) -> Any:
            return _result(self.net(image))

    class Video(Plain):
        def forward(self, video: Any) -> Any:
            return _result(self.net(video))

    class Pair(Plain):
        def forward(self, first: Any, second: Any) -> Any:
            return _result(self.net(first, second))

    return {("image",): Pictures, ("video",): Video, ("first", "second"): Pair}[arguments]()


def _result(value: Any) -> Any:
    """The main output of a network that gives a table (segmentation) or a list of refinements (optical flow)."""
    if isinstance(value, Mapping):
        return value["out"]
    return value[-1] if isinstance(value, (list, tuple)) else value


def _first(name: str, options: Mapping[str, Any], own: int, built: Callable[[int], Made]) -> Made:
    """The model at the side that was asked for, or at the first one at which it runs. Raises Unsupported."""
    wanted = options.get("size")
    sides = (wanted,) if wanted is not None else (*SIDES, own)
    problem = ""
    for side in sides:
        try:
            made = built(side)
        except (BadModel, Unsupported):
            raise
        except Exception as error:  # noqa: BLE001 -- a constructor's or an operator's; the next size may suit it
            problem = line(error)
            continue
        if wanted is None and side != SIDES[0]:
            made.notes.append(f"it takes pictures of {side} × {side}: smaller ones do not suit it")
        return made
    raise Unsupported(f"{name} does not run on pictures of {sides[-1]} × {sides[-1]} ({problem}); give another ?size=")
