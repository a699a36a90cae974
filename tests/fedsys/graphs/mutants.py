"""Vets and runs mutated graphs in a process that is locked in; says what came of them.

``python -m tests.fedsys.graphs.mutants COUNT SEED FILE...`` prints one line of JSON: how many were
refused, ran, or found a number outside an axis; what else happened; what was tried that arithmetic
does not need (audit events of files, sockets and processes). It then waits for its input to end.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from client.graphs.sandbox import confine
from fedsys.graphs import GraphError, Interpreter, Limits, encode, vet
from fedsys.graphs import training_graph_pb2 as pb
from fedsys.graphs.decoding import Bounds
from fedsys.graphs.operators import OPERATORS
from tests.fedsys.graphs.samples import inputs_of

MEMORY = 64 << 20
LIMITS = Limits(bounds=Bounds(file=1 << 20), memory=MEMORY, work=1e8)
_LARGE = [1 << 16, (1 << 31) - 1, 1 << 31, 1 << 62, -(1 << 63)]
_NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, -1, -2, 255, *_LARGE]
_WATCHED = ("open", "os.", "socket.", "subprocess.", "import", "exec", "compile", "ctypes.")


def _value(draw: random.Random, old: int) -> int:
    return draw.choice([draw.choice(_NUMBERS), old + draw.choice([-1, 1]), old * 2, old * 1000]) % (
        1 << 62
    )


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """`raw` with a few changes: of its bytes, or of what they say, spelled as is right."""
    if draw.random() < 0.25:
        return _bytes(raw, draw)
    model = pb.ModelProto()
    model.ParseFromString(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        draw.choice([_node, _node, _attribute, _attribute, _constant, _constant, _wire, _shape])(
            model.graph, draw
        )
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole


def _bytes(raw: bytes, draw: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(draw.choice([1, 2, 8])):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        else:
            other = draw.randrange(len(data))
            data[at:at] = data[other : other + draw.randrange(1, 200)]
        if not data:
            break
    return bytes(data)


def _node(graph: Any, draw: random.Random) -> None:
    """Another operator with the attributes that it has, or one node fewer or twice."""
    at = draw.randrange(len(graph.node))
    kind = draw.randrange(4)
    if kind == 0:
        del graph.node[at]
    elif kind == 1:
        copy = pb.NodeProto()
        copy.CopyFrom(graph.node[at])
        for place in range(len(copy.output)):
            copy.output[place] = f"m{draw.randrange(1 << 30)}"
        graph.node.append(copy)
    else:
        graph.node[at].op_type = draw.choice(list(OPERATORS))
        if kind == 3:
            _fit(graph.node[at], draw)
    if not graph.node:
        graph.node.add(op_type="Identity", input=["weights"], output=["gradient"])


def _fit(node: Any, draw: random.Random) -> None:
    """Attributes as the operator has them."""
    del node.attribute[:]
    for name, kind in sorted(OPERATORS[node.op_type].attributes.items()):
        made = node.attribute.add(name=name, type={int: 2, str: 3, tuple: 7}[kind])
        if kind is int:
            made.i = draw.choice([0, 1, -1, 7])
        elif kind is str:
            made.s = draw.choice([b"none", b"add"])
        else:
            made.ints.extend(draw.choice([0, 1, 1, 2, 3]) for _ in range(draw.choice([1, 2, 4])))


def _attribute(graph: Any, draw: random.Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return
    made = draw.choice(draw.choice(nodes).attribute)
    if made.type == 7 and made.ints:
        at = draw.randrange(len(made.ints))
        made.ints[at] = _value(draw, made.ints[at])
    elif made.type == 2:
        made.i = _value(draw, made.i)
    else:
        made.type = draw.randrange(9)


def _constant(graph: Any, draw: random.Random) -> None:
    if not graph.initializer:
        return
    tensor = draw.choice(graph.initializer)
    if tensor.data_type == 7 and draw.random() < 0.8:
        numbers = np.frombuffer(tensor.raw_data, "<i8").copy()
        if len(numbers):
            at = draw.randrange(len(numbers))
            numbers[at] = _value(draw, int(numbers[at]))
            tensor.raw_data = numbers.tobytes()
    elif tensor.dims and draw.random() < 0.5:
        tensor.dims[draw.randrange(len(tensor.dims))] = _value(draw, 1)
    elif tensor.raw_data:
        data = bytearray(tensor.raw_data)
        data[draw.randrange(len(data))] = draw.randrange(256)
        tensor.raw_data = bytes(data)


def _wire(graph: Any, draw: random.Random) -> None:
    """Another value as an input."""
    node = draw.choice(graph.node)
    names = [name for each in graph.node for name in each.output]
    names += [each.name for each in graph.input] + [each.name for each in graph.initializer]
    if node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(names)


def _shape(graph: Any, draw: random.Random) -> None:
    """Another size or type of an input."""
    type_ = draw.choice([*graph.input, *graph.output]).type.tensor_type
    if type_.shape.dim and draw.random() < 0.8:
        size = draw.choice(type_.shape.dim)
        size.dim_value = _value(draw, size.dim_value)
    else:
        type_.elem_type = draw.randrange(13)


def main() -> None:
    """Prints what came of the mutants."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    originals = [Path(name).read_bytes() for name in sys.argv[3:]]
    for raw in originals:  # everything is loaded before the door is shut
        Interpreter(vet(raw)).run(inputs_of(vet(raw).graph))
    tried: list[str] = []
    done = {"refused": 0, "ran": 0, "index": 0}
    failed: list[str] = []
    walls = confine(memory=4 * MEMORY, seconds=36_000)
    watching = [True]

    def watch(event: str, _: Any) -> None:
        if watching[0] and event.startswith(_WATCHED):
            tried.append(event)

    sys.addaudithook(watch)
    for at in range(count):
        draw = random.Random(f"{seed} {at}")
        raw = mutated(draw.choice(originals), draw)
        try:
            vetted = vet(raw, LIMITS)
            Interpreter(vetted).run(inputs_of(vetted.graph, at))
            done["ran"] += 1
            if encode(vetted.graph) != raw:
                failed.append(f"{at}: accepted in another spelling")
        except GraphError:
            done["refused"] += 1
        except IndexError:
            done["index"] += 1
        except Exception as error:
            failed.append(f"{at}: {type(error).__name__}: {error}"[:300])
    watching[0] = False
    said = {"failed": failed[:20], "tried": sorted(set(tried)), "walls": walls}
    print(json.dumps({**done, **said}), flush=True)
    sys.stdin.read()  # until who asked has seen how much memory was used


if __name__ == "__main__":
    main()
