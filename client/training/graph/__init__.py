"""The graph path: the local epoch of K clients, recorded once and replayed for every chunk."""
