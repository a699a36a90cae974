"""The dual path: linear layers in dual form, everything else once for all clients of a chunk."""
