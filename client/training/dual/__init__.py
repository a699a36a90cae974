"""The dual path: linear layers in dual form, everything else batched over a chunk's clients."""
