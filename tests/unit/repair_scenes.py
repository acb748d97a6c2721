"""What a rule of repair is shown, around graphs made by hand; and how its edits come out, without a file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from diagnosis_cases import finding, matched

from trueport.diagnosis.evidence import examine
from trueport.repairs.scene import Scene


def scene(source, target, *, place="y", ours=None, theirs=None, kind="drift", precision="float32", pairs=None, bad=()):
    """The suspect at value `place` of two models of `diagnosis_cases`; all nodes of both are its region, or those named."""
    one, two = source.build("y"), target.build("y")
    ours = [node.name for node in source.nodes] if ours is None else ours
    theirs = [node.name for node in target.nodes] if theirs is None else theirs
    found = finding(place, region=theirs, source_region=ours, kind=kind)
    alignment = matched(pairs or {"x": "x"}, bad=bad)
    pair = SimpleNamespace(
        source=one, target=two, precision=precision, theirs=SimpleNamespace(values=two.values, graph=two.graph)
    )
    evidence = examine(found, one, two, alignment, precision=precision)
    return Scene(
        reference=None,
        target=two.artifact,
        given=None,
        verification=None,
        pair=pair,
        alignment=alignment,
        healed=alignment,
        suspect=SimpleNamespace(cause=evidence[0].cause),
        finding=found,
        evidence=evidence,
    )


def proposals(rule, *models, **facts):
    """What a rule proposes, the least doubtful first. Fails when it refuses."""
    offered = rule.propose(scene(*models, **facts))
    assert not isinstance(offered, str), offered
    return sorted(offered, key=lambda proposal: proposal.doubt)


def refused(rule, *models, **facts):
    """Why a rule proposes nothing. Fails when it does propose something."""
    offered = rule.propose(scene(*models, **facts))
    assert isinstance(offered, str), [[edit.to_json() for edit in proposal.edits] for proposal in offered]
    return offered


def written(proposal):
    """(node, parameter) -> array, of the edits that set parameters."""
    return {
        (edit.change["node"], edit.change["parameter"]): edit.arrays[edit.change["array"]]
        for edit in proposal.edits
        if edit.kind == "set-parameter"
    }


def only(proposal):
    """The one edit of a proposal."""
    assert len(proposal.edits) == 1, [edit.to_json() for edit in proposal.edits]
    return proposal.edits[0]


def same(array, wanted):
    """Whether an array is what is wanted, as float32 and in shape."""
    wanted = np.asarray(wanted, np.float32)
    return array.shape == wanted.shape and np.allclose(array, wanted, rtol=2e-7, atol=1e-12)
