"""Cost of the Core ML evaluator: MobileNetV2 as an ML Program, against the same network in PyTorch eager.

    python benchmarks/coreml.py [--side 224] [--repeats 9]

Both run in one worker process, in turn, on one image, with the same number of threads. coremltools folds BatchNorm into the
convolutions, so the program has fewer operators than the network; the second line is against the network with that done too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BOUND = 5.0
"""Times PyTorch eager that an evaluation may cost."""
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, repeats, stride) of MobileNetV2's stages."""


def mobilenet() -> Any:
    """MobileNetV2 with the weights that PyTorch starts from. Runs in the toolchain."""
    import torch
    from torch import nn

    class Inverted(nn.Module):
        def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
            super().__init__()
            hidden = channels * expansion
            layers: list[Any] = []
            if expansion > 1:
                layers += [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
            layers += [
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(),
            ]
            layers += [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
            self.body, self.adds = nn.Sequential(*layers), stride == 1 and channels == out

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    torch.manual_seed(0)
    layers: list[Any] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    channels = 32
    for expansion, out, repeats, first in BLOCKS:
        for number in range(repeats):
            layers.append(Inverted(channels, out, first if number == 0 else 1, expansion))
            channels = out
    layers += [nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head).eval()


def measure(folder: str, side: int, repeats: int) -> dict[str, list[float]]:
    """Convert, then time one image in turn: seconds of each way, by name. Runs in the toolchain."""
    import coremltools
    import torch

    from trueport.frameworks._coreml_file import opened
    from trueport.frameworks._coreml_program import Evaluator

    network = mobilenet()
    image = torch.rand(1, 3, side, side)
    traced = torch.jit.trace(network, image)
    folded = torch.jit.freeze(traced)
    found: dict[str, list[float]] = {"eager": [], "frozen": [], "float32": [], "float16": []}
    ways: dict[str, Any] = {"eager": lambda: network(image), "frozen": lambda: folded(image)}
    for name in ("float32", "float16"):
        model = coremltools.convert(
            traced,
            inputs=[coremltools.TensorType(name="x", shape=image.shape)],
            convert_to="mlprogram",
            compute_precision=getattr(coremltools.precision, name.upper()),
            minimum_deployment_target=coremltools.target.iOS16,
        )
        path = str(Path(folder) / f"{name}.mlpackage")
        model.save(path)
        one = opened(path)
        evaluator = Evaluator(one.program, one.kernels, wanted=list(one.program.outputs))
        feeds = {"x": image.numpy()}
        ways[name] = lambda evaluator=evaluator, feeds=feeds: evaluator.run(feeds, emit=lambda _name, _value: None)
    with torch.no_grad():
        for way in ways.values():
            way()
        for _ in range(repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                found[name].append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure, print the table, and fail where a bound is missed."""
    from harness import Row

    from trueport.envs import EnvStore
    from trueport.outcome import Failure, Stage
    from trueport.worker.pool import Pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    made = EnvStore(progress=lambda line: print(line, file=sys.stderr)).get("coreml")
    if isinstance(made, Failure):
        raise SystemExit(made.message)
    with tempfile.TemporaryDirectory() as folder, Pool(timeout=1200) as pool:
        arguments = {"folder": folder, "side": given.side, "repeats": given.repeats}
        paths = [str(Path(__file__).parent)]
        outcome = pool.call(made.value.python, "coreml", "measure", arguments, stage=Stage.RUN, paths=paths)
    if isinstance(outcome, Failure):
        raise SystemExit(outcome.message)
    times = outcome.value.value
    rows = [
        Row(
            name=f"MobileNetV2 {way}, evaluator against PyTorch {base}",
            values=ratios(times[way], times[base]),
            bound=bound,
            unit="x",
        )
        for base, bound in (("eager", BOUND), ("frozen", None))
        for way in ("float32", "float16")
    ]
    rows.append(
        Row(name="MobileNetV2 in PyTorch eager, one image", values=tuple(1e3 * t for t in times["eager"]), unit="ms")
    )
    print("\n".join(row.text() for row in rows))
    if any(row.missed for row in rows):
        raise SystemExit(1)


def ratios(ours: list[float], theirs: list[float]) -> tuple[float, ...]:
    """Quotients of the runs that followed each other."""
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
