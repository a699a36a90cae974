"""A task's gradient as an inert ONNX graph: read, vetted and run with numpy, without torch.

A device trains on data that its owner approved by hash instead of on code: the graph computes one
step's gradient, and everything else (optimizer, batch order, clipping, noise) is the device's own::

    vetted = vet(raw)                       # GraphError, or a graph rebuilt from checked fields
    step = Interpreter(vetted)
    gradient, loss = step.run({"weights": w, "x": x, "y": y, "example_weights": weight})

Vetting bounds what a graph can cost, not what it means: a graph may copy examples into what it
calls a gradient. Clipping and noise bound what that reveals.
"""

from fedsys.graphs.encoding import encode
from fedsys.graphs.errors import GraphError
from fedsys.graphs.graph import Attribute, Kind, Node, TensorType, TrainingGraph
from fedsys.graphs.interpreter import Interpreter
from fedsys.graphs.reading import read_graph
from fedsys.graphs.vetting import Limits, Vetted, vet

__all__ = [
    "Attribute",
    "GraphError",
    "Interpreter",
    "Kind",
    "Limits",
    "Node",
    "TensorType",
    "TrainingGraph",
    "Vetted",
    "encode",
    "read_graph",
    "vet",
]
