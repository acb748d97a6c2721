"""Writes edits of the wiring into a Keras configuration: layers taken out or put in, operands, inputs, outputs.

The model's outputs keep their names, which in Keras are those of the layers that give them: a layer that comes behind
such a layer takes over its name, and the one before gets another. Runs in a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trueport.frameworks import _keras_words as words
from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._keras_patch import Patch
from trueport.frameworks._keras_wiring import Found, Level, Piece, Tensor

IDENTITY = Piece("Activation", {"activation": "linear"})
Origin = tuple[str, str, int, int]
"""A tensor in the whole model: prefix of its level, layer, call, output."""


def wired(patch: Patch, node: str) -> Found:
    """A node in a graph whose wires can be changed. Raises Unsupported for a layer inside a layer."""
    found = patch.wiring.find(node)
    if found.wrapped:
        raise Unsupported(f"'{node}' stands inside another layer, where nothing can be wired")
    patch.wiring.functional(found.level)
    return found


def origin(patch: Patch, level: Level, tensor: Tensor) -> Origin:
    """What a tensor is as `graph` shows it: layers that pass their input on, and borders of nested models, do not show."""
    whole = level.layer(tensor[0])
    if whole is not None and "layers" in whole["config"]:
        inner = patch.wiring.inner(level, whole)
        patch.wiring.functional(inner)
        outputs = inner.outputs()
        if tensor[2] < len(outputs):
            return origin(patch, inner, outputs[tensor[2]])
    if whole is not None and words.described(whole, legacy=level.legacy)[0] == "Identity":
        read = level.operands(whole, tensor[1])
        if read:
            return origin(patch, level, read[0])
    if whole is not None and whole["class_name"] == "InputLayer" and level.prefix:
        outer = patch.wiring.outer(level)
        if outer is not None:
            names = [one[0] for one in level.read(level.config["input_layers"])]
            read = outer[0].operands(outer[1], 0)
            if tensor[0] in names and len(read) == len(names):
                return origin(patch, outer[0], read[names.index(tensor[0])])
    return (level.prefix, *tensor)


def prune(patch: Patch, level: Level) -> None:
    """Take away the layers that no output of the level needs; inputs stay."""
    needed: set[tuple[str, int]] = set()
    pending = [(name, call) for name, call, _ in level.outputs()]
    while pending:
        one = pending.pop()
        whole = level.layer(one[0])
        if one in needed or whole is None:
            continue
        needed.add(one)
        pending += [(name, call) for name, call, _ in level.operands(whole, one[1])]
    names = {name for name, _ in needed}
    for whole in list(level.layers):
        name = whole["config"]["name"]
        if whole["class_name"] == "InputLayer":
            continue
        if name not in names:
            level.layers.remove(whole)
            for place in patch.held(Found(level, whole, f"{level.prefix}{name}", 0)):
                patch.editor.forget(place[0])
            continue
        for call in reversed(range(len(whole["inbound_nodes"]))):
            if (name, call) not in needed:
                _drop_call(level, whole, call)


def _drop_call(level: Level, whole: dict[str, Any], call: int) -> None:
    """Take away a call that nothing reads; the calls behind it move up."""
    name = whole["config"]["name"]
    del whole["inbound_nodes"][call]

    def moved(tensor: Tensor) -> Tensor:
        return (name, tensor[1] - 1, tensor[2]) if tensor[0] == name and tensor[1] > call else tensor

    for one in level.layers:
        one["inbound_nodes"] = level.mapped(one["inbound_nodes"], moved)
    level.config["output_layers"] = level.mapped(level.config["output_layers"], moved)


def rename(patch: Patch, level: Level, old: str, new: str) -> None:
    """Give a layer another name, wherever it is named."""
    whole = level.layer(old)
    if whole is None or level.layer(new) is not None:
        raise Unsupported(f"'{old}' cannot be renamed to '{new}'")

    def moved(tensor: Tensor) -> Tensor:
        return (new, tensor[1], tensor[2]) if tensor[0] == old else tensor

    for one in level.layers:
        one["inbound_nodes"] = level.mapped(one["inbound_nodes"], moved)
    for key in ("input_layers", "output_layers"):
        level.config[key] = level.mapped(level.config[key], moved)
    whole["config"]["name"] = whole["name"] = new
    before, after = f"{level.prefix}{old}", f"{level.prefix}{new}"
    editor = patch.editor
    editor.places = {_moved(place, before, after): name for place, name in editor.places.items()}
    editor.states = {_moved(place, before, after): state for place, state in editor.states.items()}


def _moved(place: tuple[str, int], before: str, after: str) -> tuple[str, int]:
    """A weight's place after its layer, or one around it, got another name."""
    path = place[0]
    inside = path == before or path.startswith(f"{before}/")
    return (f"{after}{path[len(before) :]}", place[1]) if inside else place


def take_name(patch: Patch, level: Level, old: Tensor, new: Tensor) -> None:
    """Let the layer that now gives an output of the model have the name of the one that gave it."""
    if level.prefix or old[2] or new not in level.outputs():
        return
    held = level.layer(old[0])
    if held is not None:
        if held["class_name"] == "InputLayer" or len(held["inbound_nodes"]) > 1:
            return
        before = level.fresh(f"{old[0]}_before")
        rename(patch, level, old[0], before)
        patch.wiring.renamed[old[0]] = before
    rename(patch, level, new[0], old[0])


def remove_node(patch: Patch, edit: EditDict) -> None:
    """Let the readers of a node read one of its operands."""
    found = wired(patch, edit["node"])
    level, reads = found.level, found.level.operands(found.whole, found.call)
    slot = int(edit.get("slot", 0))
    if not 0 <= slot < len(reads):
        raise Unsupported(f"'{edit['node']}' has no operand {slot}; it reads {len(reads)} values")
    own = (found.name, found.call, 0)
    if own in level.outputs():  # the output is named after this layer
        found = patch.own(edit["node"], always=True)
        patch.replace(found, [IDENTITY], [reads[slot]])
        found.whole["inbound_nodes"][found.call] = level.inbound(IDENTITY, [reads[slot]])
    else:
        level.redirect(own, reads[slot])
    prune(patch, level)


def chain(patch: Patch, level: Level, tensor: Tensor, steps: Sequence[dict[str, Any]]) -> Tensor:
    """Make the layers of the steps behind a tensor; returns what the last one gives."""
    shape = patch.shape(level, tensor)
    for step in steps:
        slot = int(step.get("slot") or 0)
        others = []
        for name in step.get("others") or []:
            other_level, other = patch.wiring.value(name)
            if other_level.prefix != level.prefix:
                raise Unsupported(f"'{name}' stands in another nested model than the place of the insertion")
            others.append(other)
        tensors = [*others[:slot], tensor, *others[slot:]] if others else [tensor]
        made = patch.asked(step["operator"], dict(step.get("attributes") or {}), step.get("constants") or [],
                           slot=slot, values=len(tensors), shape=shape)  # fmt: skip
        like = patch.like(level, tensor)
        for piece in made:
            name = level.fresh(f"{step['operator'].lower()}_{piece.kind.lower()}" if len(made) > 1 else
                               f"inserted_{step['operator'].lower()}")  # fmt: skip
            tensors = [level.add(patch.editor, name, piece, tensors, like)]
        tensor, shape = tensors[0], shape if made[-1].kind in SAME_SHAPE else None
    return tensor


SAME_SHAPE = ("Activation", "Rescaling", "ReLU", "LeakyReLU", "ELU", "Softmax", "PReLU", "BatchNormalization", "Clip",
              "Flip", "Gelu", "LayerNormalization")  # fmt: skip


def insert(patch: Patch, edit: EditDict) -> None:
    """Put layers between a value and its readers."""
    name, steps = edit["value"], edit["steps"]
    if not steps:
        raise Unsupported("an insertion needs a step")
    readers = edit.get("readers")
    level, tensor = patch.wiring.value(name)
    if readers is not None:
        for reader in readers:
            _insert_before(patch, name, level, tensor, reader, steps)
        return
    for other in [one for step in steps for one in step.get("others") or []]:
        other_level, one = patch.wiring.value(other)
        if other_level.prefix == level.prefix and one != tensor and _needs(level, one, tensor[:2]):
            raise Unsupported(f"'{other}' is computed from '{name}': name the readers that are to read the new value")
    present = {whole["config"]["name"] for whole in level.layers}
    last = chain(patch, level, tensor, steps)
    made = [whole["config"]["name"] for whole in level.layers if whole["config"]["name"] not in present]
    was_output = tensor in level.outputs()
    level.redirect(tensor, last, skip=made)
    if was_output:
        take_name(patch, level, tensor, last)


def _insert_before(
    patch: Patch, name: str, level: Level, tensor: Tensor, reader: str, steps: Sequence[dict[str, Any]]
) -> None:
    """Put layers in front of one reader of a value alone."""
    wanted = origin(patch, level, tensor)
    if not reader:
        place = next((t for t in patch.wiring.top.outputs() if origin(patch, patch.wiring.top, t) == wanted), None)
        if place is None:
            raise Unsupported(f"'{name}' is no output of the model")
        last = chain(patch, patch.wiring.top, place, steps)
        top = patch.wiring.top
        top.config["output_layers"] = top.mapped(top.config["output_layers"], lambda t: last if t == place else t)
        take_name(patch, top, place, last)
        return
    found = wired(patch, reader)
    reads = found.level.operands(found.whole, found.call)
    slots = [slot for slot, one in enumerate(reads) if origin(patch, found.level, one) == wanted]
    if not slots:
        raise Unsupported(f"'{reader}' does not read '{name}'")
    last = chain(patch, found.level, reads[slots[0]], steps)
    found.level.put_operands(found.whole, found.call, [last if i in slots else one for i, one in enumerate(reads)])


def reorder_inputs(patch: Patch, edit: EditDict) -> None:
    """Let a node read its operands in another order."""
    found = wired(patch, edit["node"])
    reads = found.level.operands(found.whole, found.call)
    order = [int(place) for place in edit["order"] if int(place) < len(reads)]
    if sorted(order) != list(range(len(reads))):
        raise Unsupported(f"'{edit['node']}' reads {len(reads)} values, which {edit['order']} does not order")
    found.level.put_operands(found.whole, found.call, [reads[place] for place in order])


def set_input(patch: Patch, edit: EditDict) -> None:
    """Let a node read another value at one of its places."""
    found = wired(patch, edit["node"])
    level, tensor = patch.wiring.value(edit["value"])
    reads, slot = found.level.operands(found.whole, found.call), int(edit["slot"])
    if not 0 <= slot < len(reads):
        raise Unsupported(f"'{edit['node']}' has no operand {slot}; it reads {len(reads)} values")
    if level.prefix != found.level.prefix:
        raise Unsupported(f"'{edit['value']}' and '{edit['node']}' stand in different nested models")
    if _needs(level, tensor, (found.name, found.call)):
        raise Unsupported(f"'{edit['value']}' is computed from '{edit['node']}', which would make a circle")
    reads[slot] = tensor
    found.level.put_operands(found.whole, found.call, reads)
    prune(patch, found.level)


def _needs(level: Level, tensor: Tensor, call: tuple[str, int]) -> bool:
    """Whether a call helps to compute a tensor."""
    pending, seen = [tensor[:2]], set()
    while pending:
        one = pending.pop()
        if one == call:
            return True
        whole = level.layer(one[0])
        if one not in seen and whole is not None:
            seen.add(one)
            pending += [t[:2] for t in level.operands(whole, one[1])]
    return False


def set_dimensions(patch: Patch, edit: EditDict) -> None:
    """Give an input another shape, and the inputs of nested models that read it."""
    level, tensor = patch.wiring.value(edit["value"])
    whole = level.layer(tensor[0])
    if whole is None or whole["class_name"] != "InputLayer":
        raise Unsupported(f"'{edit['value']}' is no input of the model")
    sizes = [size if isinstance(size, int) else None for size in edit["shape"]]
    _resize(patch, level, whole, sizes)


def _resize(patch: Patch, level: Level, whole: dict[str, Any], sizes: list[int | None]) -> None:
    key = next(key for key in ("batch_shape", "batch_input_shape") if key in whole["config"])
    whole["config"][key] = sizes
    for reader, call in level.readers((whole["config"]["name"], 0, 0)):
        if "layers" in reader["config"]:
            inner = patch.wiring.inner(level, reader)
            patch.wiring.functional(inner)
            slot = level.operands(reader, call).index((whole["config"]["name"], 0, 0))
            name = inner.read(inner.config["input_layers"])[slot][0]
            _resize(patch, inner, next(one for one in inner.layers if one["config"]["name"] == name), sizes)


def set_outputs(patch: Patch, edit: EditDict) -> None:
    """Let the model give these values and no others."""
    top = patch.wiring.top
    patch.wiring.functional(top)
    named = top.named("output_layers", list(patch.editor.loaded.outputs))
    tensors = []
    for name in edit["outputs"]:
        level, tensor = (top, named[name]) if name in named else patch.wiring.value(name)
        if level.prefix:
            raise Unsupported(f"'{name}' stands inside a nested model, whose values are no outputs")
        tensors.append(tensor)
    held = top.config["output_layers"]
    if isinstance(held, dict) and all(name in held for name in edit["outputs"]):
        top.config["output_layers"] = {name: held[name] for name in edit["outputs"]}
    elif len(tensors) == 1 and not top.legacy:
        top.config["output_layers"] = top.written(tensors[0])
    else:
        top.config["output_layers"] = [top.written(tensor) for tensor in tensors]
    prune(patch, top)


def recompute(patch: Patch, edit: EditDict) -> None:
    """Compute a value anew, from operators in ONNX vocabulary."""
    level, old = patch.wiring.value(edit["value"])
    made: dict[str, Tensor] = {}
    present = {whole["config"]["name"] for whole in level.layers}
    for node in edit["nodes"]:
        tensors, constants, slot = [], [], None
        for place, name in enumerate(node["inputs"]):
            if name not in made and name in patch.arrays:
                constants.append(name)
                continue
            slot = place if slot is None else slot
            tensor_level, tensor = (level, made[name]) if name in made else patch.wiring.value(name)
            if tensor_level.prefix != level.prefix:
                raise Unsupported(f"'{name}' stands in another nested model than '{edit['value']}'")
            tensors.append(tensor)
        if not tensors:
            raise Unsupported(f"'{node.get('name', node['op'])}' reads no value of the model")
        if len(node["outputs"]) > 1:
            raise Unsupported(
                f"'{node.get('name', node['op'])}' gives several values, a recomputation is made of single ones"
            )
        layers = patch.asked(node["op"], dict(node.get("attributes") or {}), constants, slot=slot or 0,
                             values=len(tensors), shape=patch.shape(level, tensors[0]))  # fmt: skip
        like = patch.like(level, tensors[0])
        for piece in layers:
            name = level.fresh(str(node.get("name") or f"recomputed_{node['op'].lower()}"))
            tensors = [level.add(patch.editor, name, piece, tensors, like)]
        made[node["outputs"][0]] = tensors[0]
    if not made:
        raise Unsupported("a recomputation needs a node")
    last = list(made.values())[-1]
    new = [whole["config"]["name"] for whole in level.layers if whole["config"]["name"] not in present]
    level.redirect(old, last, skip=new)
    prune(patch, level)
    if level.layer(old[0]) is None:
        rename(patch, level, last[0], old[0])
    else:
        take_name(patch, level, old, last)
