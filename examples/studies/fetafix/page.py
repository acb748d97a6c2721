"""Lines and pages about the results: our table beside what the study reports."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from fetafix.cases import CASES
from fetafix.judging import Result, Side
from fetafix.study import HELD_OUT, SEARCHED, SIZES
from trueport import __version__

NAMES = {"mobilenet_v2": "MobileNetV2", "resnet101": "ResNet-101", "inception_v3": "InceptionV3"}
COLUMNS = (
    "case", "found wrong", "their result", "other labels: start → end", "times the noise floor: start → end", "diagnosis",
    "edits (fewest)", "status", "s",
)  # fmt: skip


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "–" if share is None else f"{100 * share:.3g} %"


def times(side: Side | None) -> str:
    """A ratio as people read it."""
    return (
        "–" if side is None or side.ratio is None else f"{side.ratio:.2g}" if side.ratio < 100 else f"{side.ratio:.0f}"
    )


def cells(result: Result) -> list[str]:
    """One row of the table."""
    case, after = result.case, result.after
    named = f"{result.causes[0]}{'' if result.diagnosed else ' (wrong)'}" if result.causes else result.before.verdict
    edits = f"{len(result.edits)} ({result.fewest})" if result.edits else "–"
    if any(edit.startswith("convert-again") for edit in result.edits):
        edits = f"none: converted again ({result.fewest})"
    return [
        f"{NAMES[case.network]} {case.conversion}",
        case.found,
        case.theirs,
        f"{percent(result.before.mismatch)} → {percent(after.mismatch if after else None)}",
        f"{times(result.before)} → {times(after)}",
        named,
        edits,
        result.error[:80] if result.error else result.status,
        f"{result.repair_seconds or result.diagnosis_seconds:.0f}",
    ]


def line(result: Result) -> str:
    """One row as Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(result)) + " |"


def page(results: Sequence[Result], *, full: bool) -> str:
    """The whole page as Markdown."""
    repaired, minimal = sum(one.repaired for one in results), sum(one.repaired and one.minimal for one in results)
    sides = ", ".join(f"{NAMES[network]} {side[full]}" for network, side in SIZES.items())
    text = [
        "# The FetaFix cases, rebuilt and repaired",
        "",
        f"Made by `python examples/studies/fetafix/run.py{' --full' if full else ''} --out docs/studies/fetafix.md`"
        f" (trueport {__version__}, Python {platform.python_version()}).",
        "",
        "FetaFix (Louloudakis, Gibson, Cano and Rajan, 2025) repairs faulty conversions of three image classifiers among"
        " PyTorch, Keras, TensorFlow and TFLite: it mends 462 of the 755 faults that it finds, and takes the label"
        " mismatch of 14 of 15 erroneous conversions down. Their trained models are not at hand, so the 15 cases are"
        " rebuilt by their mechanisms: the same networks, weights that are random but fitted to data, pictures made by"
        f" code. Sides of the pictures: {sides}. A repair sees {SEARCHED} pictures; labels and noise floor are told of"
        f" {HELD_OUT} others.",
        "",
        f"**Of the {len(CASES)} cases {repaired} end at 0 % other labels and at the noise floor, {minimal} of them with no"
        f" more edits than there were faults; {len(results) - repaired} were run and do not, {len(CASES) - len(results)}"
        " have no result here.**",
        "",
        "The study can be run in parts: rows may come from several runs, and from several states of the program.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *map(line, results),
        "",
        "Start and end are shares of pictures whose label differs from the source's; where the target declares other"
        " dimensions, pictures stretched to them are counted. Every pair without its fault is faithful:"
        f" {sum(one.sound.verdict == 'faithful' for one in results)} of {len(results)}.",
        "",
        "## What each target has wrong, and what was changed",
        "",
    ]
    for result in results:
        case = result.case
        text += [f"**{NAMES[case.network]} {case.conversion}** (`{case.id}`). {_sentence(case.how)}"
                 f" {_sentence(f'Fewest edits: {case.edits}')}"]  # fmt: skip
        if result.edits:
            shown = [f"`{edit}`" for edit in result.edits[:4]]
            more = f" and {len(result.edits) - len(shown)} more" if len(result.edits) > len(shown) else ""
            text[-1] += f" Changed: {', '.join(shown)}{more}."
        text.append("")
    text += ["## What is our choice", "", *CHOICES, ""]
    missing = [f"`{case.id}`" for case in CASES if case.id not in {one.case.id for one in results}]
    text += [f"Without a result: {', '.join(missing)}.", ""] if missing else []
    return "\n".join(text)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


CHOICES = (
    "- Weights: random, with the statistics of pictures in every BatchNorm and a last layer that is centred and scaled on"
    " them. The mean shift of BatchNorm is 0.5: with a mean of 0, tried first, rounding the weights to int8 changed 17 of"
    " 24 (MobileNetV2) and 21 of 24 labels (InceptionV3), which no trained network does; the starting shares depend on"
    " this choice, and are no measure of how harmful a fault is to a trained network.",
    "- Preprocessing: the study prepares the pictures of one framework for the model of another. A file cannot hold that,"
    " so source and target both take plain pictures and carry a preparation in front; the target's is the other"
    " framework's. (The study counts these as mended without edits, by running again with the right preparation.)",
    "- No converter at hand writes Keras files; the module that onnx2torch made of the Keras MobileNetV2 could not be"
    " exported, and onnx2tf wrote no SavedModel of the PyTorch one. The targets of those directions (ResNet-101's as well,"
    " for which these tools were not tried) are ports that hold the source's weights, as users write them; each is"
    " compared with the source before the fault is brought in.",
    "- Quantised weights: TensorFlow's converter rounds them (its DEFAULT optimisation), and the values are written back"
    " into the float32 file, as the study found it of tf2onnx, which is not part of the rebuild.",
    "- ResNet-101 Keras → TFLite, called mixed: pads and one activation are changed, and the weights of the last stage"
    " are quantised. ResNet-101 TF → TFLite, where nothing was visible: BatchNorm folded with another epsilon.",
    "- Input dimensions: the target declares pictures 16 pixels taller than the source's.",
)
