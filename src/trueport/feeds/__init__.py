"""The inputs on which two models are compared: recorded, read from data, or generated; kept for replay."""

from __future__ import annotations

from trueport.feeds.arrange import from_arrays
from trueport.feeds.arrays import peek
from trueport.feeds.generate import continued, generate, has_free_integers
from trueport.feeds.jitter import jitter
from trueport.feeds.labels import load_labels
from trueport.feeds.load import load
from trueport.feeds.pictures import first_picture
from trueport.feeds.restrict import restrict
from trueport.feeds.store import open_saved, save
from trueport.feeds.types import Case, Feeds

__all__ = [
    "Case",
    "Feeds",
    "continued",
    "first_picture",
    "from_arrays",
    "generate",
    "has_free_integers",
    "jitter",
    "load",
    "load_labels",
    "open_saved",
    "peek",
    "restrict",
    "save",
]
