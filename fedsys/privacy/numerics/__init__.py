"""Special functions that the accountants need, from NumPy and the standard library.

A device counts its privacy loss by the same code as the coordinator, and SciPy is four fifths of
what a device would otherwise install. Tests compare every function with SciPy or mpmath.
"""
