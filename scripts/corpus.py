"""Try every model of the corpus, every pair of twins in it, and conversions of its models; write docs/corpus-trial.md.

    python scripts/corpus.py [--corpus PATH] [--only PART] [--keep FOLDER] [--match TEXT] [--out FILE]

The corpus is a folder of real models and data, made by others, that is no part of this project (`--corpus`, or
$TRUEPORT_CORPUS; by default `shared/corpus` beside the checkout). Everything goes through the public functions. What
is not faithful needs an entry in EXPLAINED, written by hand from what was found inside the models; the exit code is 1
when one is missing, and when anything ended as an error of ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from corpus_cases import CONVERSIONS, EXPLAINED, GIVEN, PAIRS, REFUSED, Conversion, Inputs, Pair

from trueport import api, feeds
from trueport.compare.types import Verification
from trueport.errors import TrueportError
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = Path(os.environ.get("TRUEPORT_CORPUS", ROOT.parent / "shared" / "corpus"))
SUFFIXES = (".onnx", ".tflite", ".h5", ".hdf5", ".jit", ".th", ".mlmodel")
PARTS = ("models", "pairs", "conversions")
FACTORIES = ROOT / "tests" / "frameworks"
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.-]+/)+")
"""The folders of an absolute path, which belong to a machine: this one's, or that of a model's author."""
RATE = 16000
"""Samples per second of the synthetic sound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the page. `outcome`: "runs", "refused", a verdict, the kind of a Failure, or "error" (a bug of ours)."""

    name: str
    outcome: str
    reason: str
    facts: tuple[str, ...] = ()
    seconds: float = 0.0


# -- inputs -----------------------------------------------------------------------------------------------------------


def voice(runs: int, samples: int) -> np.ndarray:
    """Voiced sound of gliding pitch between silences, [runs, samples] float32: frames of one stretch, 16 kHz."""
    time_axis = np.arange(runs * samples) / RATE
    pitch = 110 + 60 * np.sin(2 * np.pi * 1.3 * time_axis)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = np.sum([np.sin(k * phase) / k for k in range(1, 20)], axis=0)
    loud = np.clip(np.sin(2 * np.pi * 2.1 * time_axis), 0, 1)
    noise = np.random.default_rng(0).normal(scale=0.003, size=tone.shape)
    return np.asarray(0.2 * loud * tone + noise, dtype=np.float32).reshape(runs, samples)


def states(runs: int, *shape: int) -> np.ndarray:
    """States of an LSTM in the range of tanh; the first run's is zero, as at the start of a stream."""
    found = np.tanh(np.random.default_rng(1).normal(scale=0.5, size=(runs, *shape))).astype(np.float32)
    found[0] = 0
    return found


def features(corpus: Path) -> dict[str, np.ndarray]:
    """Log energies of 40 bands in 30 frames of the synthetic voice, 0 to 1, as the wake word's front end makes them."""
    sound = voice(64, 30 * 320 + 160)
    frames = np.stack([sound[:, 320 * i : 320 * i + 480] for i in range(30)], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(480), 512)) ** 2
    edges = np.geomspace(2, 257, 41).astype(int)
    bands = [power[..., low : max(high, low + 1)].mean(axis=-1) for low, high in itertools.pairwise(edges)]
    scaled = np.clip((10 * np.log10(np.stack(bands, axis=-1) + 1e-9) + 52) / 64, 0, 1)
    return {"input_1": scaled[:, :, None].astype(np.float32)}


def digits(corpus: Path) -> dict[str, np.ndarray]:
    """The three inputs recorded beside the MNIST model, [3, 1, 28, 28]; their TensorProto ends with the raw floats."""
    folder = corpus / "models" / "mnist_cnn" / "mnist_8"
    files = sorted(folder.glob("test_data_set_*/input_0.pb"))
    raw = [np.frombuffer(file.read_bytes()[-4 * 784 :], "<f4").reshape(1, 28, 28) for file in files]
    return {"Input3": np.stack(raw)}


def _sound(frame: int, name: str, state: str, make: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return {name: make(voice(16, frame))[:, None, None], state: states(16, 1, 2, 128, 2)}


def windows(corpus: Path) -> Feeds:
    """What the TorchScript voice detector takes: x [1, 512] and the sample rate."""
    inputs = {"x": voice(16, 512)[:, None], "sr": np.full(16, RATE)}
    return Feeds.of([Case(name="data", kind="data", inputs=inputs)], origin="synthetic voice", count=16)


def speech(corpus: Path) -> Feeds:
    """What the network inside takes, for one window and for three: input [B, 576], state [2, B, 128], the sample rate."""
    cases = []
    for name, kind, runs, batch in (("data", "data", 16, 1), ("batch-3", "batch", 5, 3)):
        inputs = {"input": voice(runs * batch, 576).reshape(runs, batch, 576), "state": states(runs, 2, batch, 128)}
        cases.append(Case(name=name, kind=kind, inputs={**inputs, "sr": np.full(runs, RATE)}))
    return Feeds.of(cases, origin="synthetic voice", count=16)


MADE: Mapping[str, Callable[[Path], Feeds | dict[str, np.ndarray]]] = {
    "digits": digits,
    "features": features,
    "quiet": lambda corpus: {"input_1": features(corpus)["input_1"] * np.float32(0.8)},
    "spectra": lambda _: _sound(512, "input_2", "input_3", lambda x: np.abs(np.fft.rfft(x)).astype(np.float32)),
    "frames": lambda _: _sound(512, "input_4", "input_5", lambda x: x),
    "windows": windows,
    "speech": speech,
}


def arguments(inputs: Inputs, corpus: Path) -> dict[str, object]:
    """The arguments of `verify` and `convert` for these inputs."""
    if inputs.made is not None:
        return {"inputs": MADE[inputs.made](corpus)}
    if inputs.folder is None:
        return {}
    folder = corpus / "images" / inputs.folder
    return {"inputs": folder, "preprocess": inputs.preprocess, "limit": inputs.limit}


def given_feeds(inputs: Inputs, corpus: Path) -> Feeds:
    """Inputs that need no signature to be arranged."""
    made = MADE[inputs.made or ""](corpus)
    assert isinstance(made, Feeds)
    return made


# -- the three parts ---------------------------------------------------------------------------------------------------


def models(corpus: Path) -> tuple[str, ...]:
    """Every model file, relative to `models/`."""
    found = (path for path in (corpus / "models").rglob("*") if path.suffix in SUFFIXES)
    return tuple(sorted(path.relative_to(corpus / "models").as_posix() for path in found))


def run_model(session: Session, corpus: Path, name: str) -> Row:
    """Sniff, load and run one file on generated inputs (or those of GIVEN)."""
    started = time.perf_counter()
    try:
        artifact, signature = api.inspect(corpus / "models" / name, session=session)
        given = GIVEN.get(name)
        fed = feeds.generate(signature, seed=0) if given is None else given_feeds(given, corpus)
        ran = session.run(artifact, fed.cases)
    except TrueportError as error:
        return Row(name=name, outcome="refused", reason=_clean(str(error), corpus))
    facts = (artifact.format, f"{len(signature.inputs)} → {len(signature.outputs)}")
    failed = {"all": ran} if isinstance(ran, Failure) else dict(ran.value.failures)
    seconds = time.perf_counter() - started
    if failed:
        reason = "; ".join(f"{case}: {failure.kind}: {failure.message}" for case, failure in failed.items())
        return Row(name=name, outcome="fails", reason=reason, facts=facts, seconds=seconds)
    kinds = ", ".join(f"{len(fed.of_kind(kind))} {kind}" for kind in ("data", "batch", "probe"))
    return Row(name=name, outcome="runs", reason=f"cases: {kinds}", facts=facts, seconds=seconds)


def run_pair(session: Session, corpus: Path, pair: Pair) -> Row:
    """Verify a pair of twins."""
    started = time.perf_counter()
    try:
        source = corpus / "models" / pair.source
        if pair.rewrite is not None:
            source = rewritten(session, source, *pair.rewrite)
        result = api.verify(
            source,
            corpus / "models" / pair.target,
            session=session,
            **arguments(pair.inputs, corpus),  # type: ignore[arg-type]
        )
    except TrueportError as error:
        return Row(name=pair.name, outcome="refused", reason=_clean(str(error), corpus))
    return Row(
        name=pair.name,
        outcome=str(result.verdict),
        reason=_clean(result.reason, corpus),
        facts=numbers(result),
        seconds=time.perf_counter() - started,
    )


def rewritten(session: Session, source: Path, toolchain: str, function: str, name: str) -> Path:
    """Let a function of `corpus_models` rewrite a model in its toolchain."""
    environment = session.environment(toolchain)
    assert not isinstance(environment, Failure), environment
    out = session.pool.fresh_folder(function) / name
    done = session.pool.call(
        environment.value.python,
        "corpus_models",
        function,
        {"path": str(source), "out": str(out)},
        stage=Stage.LOAD,
        paths=[str(ROOT / "scripts")],
    )
    assert not isinstance(done, Failure), done
    return out


def run_conversion(session: Session, corpus: Path, case: Conversion, folder: Path) -> Row:
    """Convert into `folder`; the row names every route that was tried."""
    started = time.perf_counter()
    factory = ":" in case.source
    try:
        result = api.convert(
            case.source if factory else corpus / "models" / case.source,
            to=case.to,
            out=folder / f"{len(list(folder.iterdir()))}.{case.to}",
            checkpoint=None if case.checkpoint is None else corpus / "models" / case.checkpoint,
            precision=case.precision,
            max_routes=3,
            session=session,
            **arguments(case.inputs, corpus),  # type: ignore[arg-type]
        )
    except TrueportError as error:
        return Row(name=case.name, outcome="refused", reason=_clean(str(error), corpus))
    seconds = time.perf_counter() - started
    tried = []
    for attempt in result.attempts:
        failure, verified, blamed = attempt.failure, attempt.verification, attempt.blamed
        at = attempt.hops[-1].hop.step.name
        if failure is not None:
            tried.append(f"`{attempt.route.name}`: {at}: {failure.kind}: {_clean(failure.message, corpus)}")
        elif verified is not None:
            by = "" if blamed is None else f" (blamed: {blamed.hop.step.name})"
            tried.append(f"`{attempt.route.name}`: {verified.verdict}{by}: {_clean(verified.reason, corpus)}")
    last = result.attempts[-1].failure
    verification = result.verification
    outcome = "unverified" if last is None else str(last.kind)
    if verification is not None:
        outcome = str(verification.verdict)
    facts = () if verification is None else numbers(verification)
    return Row(name=case.name, outcome=outcome, reason="<br>".join(tried), facts=facts, seconds=seconds)


def numbers(result: Verification) -> tuple[str, ...]:
    """Declared precision, the worst ratio to the floor, the worst cosine, flips and accuracy."""
    outputs, decisions = result.comparison.outputs, result.comparison.decisions
    ratios = [output.ratio for output in outputs if output.ratio == output.ratio]
    cosines = [output.cosine for output in outputs if output.cosine == output.cosine]
    ratio = f"{max(ratios):.3g}" if ratios else ""
    cosine = f"{min(cosines):.7f}" if cosines else ""
    decided = ""
    if decisions is not None and decisions.count:
        decided = f"{decisions.top1_flips} of {decisions.count} flip ({decisions.flips_within_noise} within noise)"
        if decisions.accuracy_source is not None and decisions.accuracy_target is not None:
            decided += f"; {decisions.accuracy_source:.1%} → {decisions.accuracy_target:.1%}"
    return result.declared_precision, ratio, cosine, decided


def _clean(text: str, corpus: Path) -> str:
    """No machine's paths, one line, no column marks."""
    short = text.replace(f"{corpus.resolve()}/models/", "").replace(f"{corpus}/models/", "")
    short = FOLDERS.sub("…/", short)
    return " ".join(short.replace("|", "\\|").split())[:400]


# -- the page ----------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Corpus trial

Generated by `scripts/corpus.py` from a corpus of real trained models made by others, which is not part of this project
(its manifest names their origin): every model is sniffed, loaded and run, every pair of twins that its authors
published gets a verdict, and models are converted. The reasons under "Explained" were written by hand after looking
into the models."""


def page(parts: Mapping[str, tuple[Row, ...]]) -> str:
    """Return the Markdown page."""
    lines = [INTRODUCTION]
    heads = {  # part -> title, columns
        "models": ("Every model", "model | format | inputs → outputs | outcome | what happened"),
        "pairs": ("Pairs of twins", "pair | verdict | declared | ratio to floor | cosine | decisions | reason"),
        "conversions": (
            "Conversions",
            "conversion | outcome | declared | ratio to floor | cosine | decisions | routes tried",
        ),
    }
    for part, rows in parts.items():
        title, head = heads[part]
        width = head.count("|") + 1
        lines += ["", f"## {title}", "", f"| {head} |", "|---" * width + "|"]
        for row in rows:
            facts = [*row.facts, *[""] * (width - 3 - len(row.facts))]
            cells = [row.name, *facts, row.outcome] if part == "models" else [row.name, row.outcome, *facts]
            lines.append(f"| {' | '.join([*cells, row.reason])} |")
        explained = [(row.name, {**REFUSED, **EXPLAINED}.get(row.name)) for row in rows]
        found = [f"- **{name}**: {text}" for name, text in explained if text is not None]
        lines += ["", "### Explained", "", *found] if found else []
    return "\n".join(lines) + "\n"


def unexplained(rows: Iterable[Row]) -> list[str]:
    """Rows that need a reason by hand and have none."""
    fine = ("runs", "faithful")
    return [row.name for row in rows if row.outcome not in fine and row.name not in {**REFUSED, **EXPLAINED}]


def trial(session: Session, corpus: Path, parts: Iterable[str], match: str, folder: Path) -> dict[str, tuple[Row, ...]]:
    """Run the parts, printing each row as it comes."""
    jobs: dict[str, list[Callable[[], Row]]] = {
        "models": [lambda name=name: run_model(session, corpus, name) for name in models(corpus) if match in name],  # type: ignore[misc]
        "pairs": [lambda pair=pair: run_pair(session, corpus, pair) for pair in PAIRS if match in pair.name],  # type: ignore[misc]
        "conversions": [
            lambda case=case: run_conversion(session, corpus, case, folder)  # type: ignore[misc]
            for case in CONVERSIONS
            if match in case.name
        ],
    }
    found: dict[str, tuple[Row, ...]] = {}
    for part in parts:
        rows = []
        for job in jobs[part]:
            row = job()
            print(
                f"{row.seconds:6.1f} s  {row.name:60} {row.outcome:14} {' '.join(row.facts)} {row.reason}", flush=True
            )
            rows.append(row)
        found[part] = tuple(rows)
    return found


def kept(folder: Path, found: Mapping[str, tuple[Row, ...]]) -> dict[str, tuple[Row, ...]]:
    """Put the parts that ran in full beside those of earlier runs in `folder`, and return all that are there."""
    for part, rows in found.items():
        scratch = folder / f"{part}.part"
        scratch.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
        scratch.replace(folder / f"{part}.json")
    stored = {part: folder / f"{part}.json" for part in PARTS if (folder / f"{part}.json").is_file()}
    return {
        part: tuple(
            Row(**{**item, "facts": tuple(item["facts"])}) for item in json.loads(file.read_text(encoding="utf-8"))
        )
        for part, file in stored.items()
    }


def main() -> int:
    """Run the trial and write the page once all parts are known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=DEFAULT)
    parser.add_argument("--only", choices=PARTS, default=None)
    parser.add_argument("--match", default="", help="only rows whose name contains this; writes no page")
    parser.add_argument(
        "--keep", type=Path, default=None, help="folder for the results of parts, to run them one by one"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "corpus-trial.md")
    given = parser.parse_args()
    if not (given.corpus / "models").is_dir():
        print(f"{given.corpus} holds no models; name the corpus with --corpus or $TRUEPORT_CORPUS", file=sys.stderr)
        return 2
    settings = Settings(timeout=600, trust=True, paths=(str(FACTORIES),))
    with Session(settings) as session, tempfile.TemporaryDirectory() as folder:
        chosen = PARTS if given.only is None else (given.only,)
        found = trial(session, given.corpus, chosen, given.match, Path(folder))
        if not given.match:
            found = kept(given.keep or Path(folder), found)
    if not given.match and set(found) == set(PARTS):
        scratch = given.out.with_suffix(".part")
        scratch.write_text(page(found), encoding="utf-8")
        scratch.replace(given.out)
    missing = [name for rows in found.values() for name in unexplained(rows)]
    print(f"no explanation yet: {missing}" if missing else "every result that is not faithful is explained")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
