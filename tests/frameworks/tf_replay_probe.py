"""What the tests of replay look at from inside a TensorFlow toolchain."""

from __future__ import annotations

import numpy as np


def cuts(path, inputs, limit, variant):
    """Put in every value in turn; returns how many graphs and sessions that took, and whether the outputs stayed."""
    from trueport.frameworks import _tf_replay as replays
    from trueport.frameworks import keras

    names = keras.names(path, trust=False)
    values = {}
    keras.trace(path, inputs, names, values.__setitem__, budget=1 << 24, trust=False)
    before, opened, limit_before = replays.Tapped._open, [], replays.LIMIT
    replays._tapped.clear()
    replays.LIMIT = limit
    replays.Tapped._open = lambda tapped: opened.append(1) or before(tapped)
    equal = True
    try:
        for name in names[:-1]:
            found = {}
            given, wanted = {name: values[name]}, names[-1:]
            keras.replay(path, inputs, given, wanted, found.__setitem__, variant=variant, budget=1 << 24, trust=False)
            equal = equal and bool(np.allclose(found[names[-1]], values[names[-1]], atol=1e-6))
    finally:
        replays.Tapped._open, replays.LIMIT = before, limit_before
    return {"graphs": len(replays._tapped), "sessions": len(opened), "equal": equal}
