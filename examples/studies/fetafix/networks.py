"""The three networks of the study as lists of operators, which a PyTorch and a Keras builder read.

Structure after the papers (MobileNetV2: Sandler et al. 2018; ResNet: He et al. 2015; InceptionV3: Szegedy et al. 2015)
in the form in which PyTorch users know them: symmetric pads, no bias in front of BatchNorm, the stride of a bottleneck
in its 3x3 convolution, average pools that count their pads. Standard library only: both workers read this file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CLASSES = 1000


class Op(NamedTuple):
    """One operator: "unit" (convolution, BatchNorm, perhaps an activation), "max", "mean", "global", "add", "cat", "relu", "dense"."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    settings: dict[str, Any]


class Plan:
    """A list of operators in the making; every method gives the name of its result."""

    def __init__(self, epsilon: float) -> None:
        self.ops: list[Op] = []
        self.epsilon = epsilon

    def put(self, kind: str, name: str, inputs: tuple[str, ...], **settings: Any) -> str:
        self.ops.append(Op(kind, name, inputs, settings))
        return name

    def unit(self, x: str, name: str, before: int, out: int, kernel: Any = 1, *, stride: int = 1, pad: Any = None,
             groups: int = 1, act: str = "relu", last: bool = False) -> str:  # fmt: skip
        """Convolution and BatchNorm. pad None keeps the size at stride 1. last: the end of a residual branch."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        pad = tuple(size // 2 for size in kernel) if pad is None else (pad, pad)
        return self.put("unit", name, (x,), before=before, out=out, kernel=kernel, stride=stride, pad=pad,
                        groups=groups, act=act, epsilon=self.epsilon, last=last)  # fmt: skip

    def pool(self, kind: str, x: str, name: str, kernel: int, stride: int, pad: int = 0) -> str:
        return self.put(kind, name, (x,), kernel=kernel, stride=stride, pad=pad)

    def head(self, x: str, width: int) -> list[Op]:
        self.put("global", "pooled", (x,))
        self.put("dense", "classes", ("pooled",), before=width, out=CLASSES)
        return self.ops


def mobilenet_v2() -> list[Op]:
    """MobileNetV2, width 1: inverted residuals with ReLU6."""
    plan = Plan(1e-5)
    x = plan.unit("image", "stem", 3, 32, 3, stride=2, act="relu6")
    width, number = 32, 0
    for factor, out, count, first in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for place in range(count):
            name, stride, inner = f"block{number}", first if place == 0 else 1, width * factor
            y = x if factor == 1 else plan.unit(x, f"{name}_expand", width, inner, act="relu6")
            y = plan.unit(y, f"{name}_depthwise", inner, inner, 3, stride=stride, groups=inner, act="relu6")
            residual = stride == 1 and width == out
            y = plan.unit(y, f"{name}_project", inner, out, act="", last=residual)
            x = plan.put("add", f"{name}_sum", (x, y)) if residual else y
            width, number = out, number + 1
    return plan.head(plan.unit(x, "last", width, 1280, act="relu6"), 1280)


def resnet101() -> list[Op]:
    """ResNet-101 with bottlenecks of 3, 4, 23 and 3."""
    plan = Plan(1e-5)
    x = plan.unit("image", "stem", 3, 64, 7, stride=2)
    x = plan.pool("max", x, "stem_pool", 3, 2, 1)
    before = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 23), (512, 3)), 1):
        for place in range(count):
            name, stride = f"stage{stage}_{place}", 2 if stage > 1 and place == 0 else 1
            y = plan.unit(x, f"{name}_a", before, width)
            y = plan.unit(y, f"{name}_b", width, width, 3, stride=stride)
            y = plan.unit(y, f"{name}_c", width, 4 * width, act="", last=True)
            short = plan.unit(x, f"{name}_short", before, 4 * width, stride=stride, act="") if place == 0 else x
            x = plan.put("relu", name, (plan.put("add", f"{name}_sum", (y, short)),))
            before = 4 * width
    return plan.head(x, before)


def inception_v3() -> list[Op]:
    """InceptionV3 without the auxiliary head."""
    plan = Plan(1e-3)
    x = plan.unit("image", "stem1", 3, 32, 3, stride=2, pad=0)
    x = plan.unit(x, "stem2", 32, 32, 3, pad=0)
    x = plan.pool("max", plan.unit(x, "stem3", 32, 64, 3), "stem_pool1", 3, 2)
    x = plan.unit(x, "stem4", 64, 80)
    x = plan.pool("max", plan.unit(x, "stem5", 80, 192, 3, pad=0), "stem_pool2", 3, 2)
    for number, (before, pooled) in enumerate(((192, 32), (256, 64), (288, 64)), 1):
        x = _mixed_a(plan, x, f"mixed_a{number}", before, pooled)
    x = _reduction_b(plan, x, "mixed_b", 288)
    for number, width in enumerate((128, 160, 160, 192), 1):
        x = _mixed_c(plan, x, f"mixed_c{number}", width)
    x = _reduction_d(plan, x, "mixed_d")
    for number, before in enumerate((1280, 2048), 1):
        x = _mixed_e(plan, x, f"mixed_e{number}", before)
    return plan.head(x, 2048)


def _chain(plan: Plan, x: str, name: str, before: int, *steps: Any) -> str:
    """Units one behind the other; a step is (width, kernel) or (width, kernel, stride without pad)."""
    for number, (out, kernel, *stride) in enumerate(steps, 1):
        given = {"stride": stride[0], "pad": 0} if stride else {}
        x, before = plan.unit(x, f"{name}_{number}", before, out, kernel, **given), out
    return x


def _mixed_a(plan: Plan, x: str, name: str, before: int, pooled: int) -> str:
    mean = plan.pool("mean", x, f"{name}_mean", 3, 1, 1)
    branches = (
        _chain(plan, x, f"{name}_one", before, (64, 1)),
        _chain(plan, x, f"{name}_five", before, (48, 1), (64, 5)),
        _chain(plan, x, f"{name}_three", before, (64, 1), (96, 3), (96, 3)),
        _chain(plan, mean, f"{name}_pool", before, (pooled, 1)),
    )
    return plan.put("cat", name, branches)


def _reduction_b(plan: Plan, x: str, name: str, before: int) -> str:
    branches = (
        _chain(plan, x, f"{name}_three", before, (384, 3, 2)),
        _chain(plan, x, f"{name}_double", before, (64, 1), (96, 3), (96, 3, 2)),
        plan.pool("max", x, f"{name}_pool", 3, 2),
    )
    return plan.put("cat", name, branches)


def _mixed_c(plan: Plan, x: str, name: str, width: int) -> str:
    row, column = (1, 7), (7, 1)
    double = ((width, 1), (width, column), (width, row), (width, column), (192, row))
    mean = plan.pool("mean", x, f"{name}_mean", 3, 1, 1)
    branches = (
        _chain(plan, x, f"{name}_one", 768, (192, 1)),
        _chain(plan, x, f"{name}_seven", 768, (width, 1), (width, row), (192, column)),
        _chain(plan, x, f"{name}_double", 768, *double),
        _chain(plan, mean, f"{name}_pool", 768, (192, 1)),
    )
    return plan.put("cat", name, branches)


def _reduction_d(plan: Plan, x: str, name: str) -> str:
    branches = (
        _chain(plan, x, f"{name}_three", 768, (192, 1), (320, 3, 2)),
        _chain(plan, x, f"{name}_seven", 768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
        plan.pool("max", x, f"{name}_pool", 3, 2),
    )
    return plan.put("cat", name, branches)


def _mixed_e(plan: Plan, x: str, name: str, before: int) -> str:
    row, column = (1, 3), (3, 1)
    three = _chain(plan, x, f"{name}_three", before, (384, 1))
    double = _chain(plan, x, f"{name}_double", before, (448, 1), (384, 3))
    mean = plan.pool("mean", x, f"{name}_mean", 3, 1, 1)
    split = [
        plan.put("cat", f"{stem}_split", (plan.unit(stem, f"{stem}_row", 384, 384, row),
                                          plan.unit(stem, f"{stem}_column", 384, 384, column)))
        for stem in (three, double)
    ]  # fmt: skip
    branches = (
        _chain(plan, x, f"{name}_one", before, (320, 1)),
        *split,
        _chain(plan, mean, f"{name}_pool", before, (192, 1)),
    )
    return plan.put("cat", name, branches)


NETWORKS = {"mobilenet_v2": mobilenet_v2, "resnet101": resnet101, "inception_v3": inception_v3}
PARAMETERS = {"mobilenet_v2": 3_504_872, "resnet101": 44_549_160, "inception_v3": 23_834_568}
"""Trained numbers of each, as published for the PyTorch versions (InceptionV3 without its auxiliary head)."""

FRONTS: dict[str, dict[str, Any]] = {
    "": {},
    "tf": {"scale": [1 / 127.5] * 3, "shift": [-1.0] * 3},
    "unit": {"scale": [1 / 255] * 3, "shift": [0.0] * 3},
    "torch": {
        "scale": [1 / (255 * std) for std in (0.229, 0.224, 0.225)],
        "shift": [-mean / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)],
    },
    "caffe": {"reverse": True, "scale": [1.0] * 3, "shift": [-103.939, -116.779, -123.68]},
    "caffe-rgb": {"scale": [1.0] * 3, "shift": [-103.939, -116.779, -123.68]},
}
"""Preparation that a model carries in front: channels perhaps reversed, then `value * scale + shift` per channel.

Pictures are RGB from 0 to 255. "tf", "torch" and "caffe" are the three conventions of keras.applications; "unit" scales
to 0..1 only; "caffe-rgb" forgets to reverse the channels.
"""
