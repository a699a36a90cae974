"""From a task to a training graph (`fedsys.graphs`): needs torch, and gives what needs none.

``torch.func`` writes the gradient, ``make_fx`` traces it to ATen's operators, rules turn those into
some sixty operators of ONNX, and the result is compared with torch on full and on padded batches.
"""

from fedsys.tasks.export.exporting import export_task

__all__ = ["export_task"]
