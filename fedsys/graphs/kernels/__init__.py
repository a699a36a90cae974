"""The arithmetic of each operator, with numpy.

A kernel is made once for each node: everything that its types and attributes decide (slices,
window geometry, permutations) is computed then, and a step calls a function of arrays alone. Types
and shapes are those that `fedsys.graphs.vetting` found; what depends on data (an index out of
range) raises IndexError.
"""

from collections.abc import Mapping

from fedsys.graphs.kernels import elementwise, indexing, layout, products, windows
from fedsys.graphs.kernels.base import Kernel, Make

__all__ = ["KERNELS", "Kernel", "Make"]

KERNELS: Mapping[str, Make] = {
    **elementwise.KERNELS,
    **layout.KERNELS,
    **indexing.KERNELS,
    **products.KERNELS,
    **windows.KERNELS,
}
"""By ONNX's name of the operator."""
