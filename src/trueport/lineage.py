"""Names and layouts over several hops: what the last tool renamed or transposed, told in the original source's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def compose(before: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Combine what earlier hops declared with what this hop declares.

    `names`: source name -> target name. `layout`: target name -> {"source": name, "permutation": [...]} with
    np.transpose(source, permutation) in the target's layout; two of them in a row are p then q, together p[q].
    Returns {"names", "layout"} against the original, and {"direct": {...}} against the hop before.
    """
    new_names: Mapping[str, str] = declared.get("names", {})
    new_layout: Mapping[str, Any] = declared.get("layout", {})
    old_names: Mapping[str, str] = before.get("names", {})
    old_layout: Mapping[str, Any] = before.get("layout", {})
    names = {origin: new_names.get(middle, middle) for origin, middle in old_names.items()}
    names |= {
        middle: new for middle, new in new_names.items() if middle not in old_names.values() and middle not in names
    }
    origin_of = {middle: origin for origin, middle in old_names.items()}
    layout = {}
    for target, entry in new_layout.items():
        middle = entry["source"]
        first = old_layout.get(middle)
        if first is None:
            layout[target] = {"source": origin_of.get(middle, middle), "permutation": list(entry["permutation"])}
        else:
            both = [first["permutation"][axis] for axis in entry["permutation"]]
            layout[target] = {"source": first["source"], "permutation": both}
    used = {entry["source"] for entry in new_layout.values()}
    for middle, entry in old_layout.items():
        if middle not in used:
            layout[new_names.get(middle, middle)] = dict(entry)
    return {"names": names, "layout": layout, "direct": {"names": dict(new_names), "layout": dict(new_layout)}}
