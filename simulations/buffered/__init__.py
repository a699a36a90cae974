"""Buffered rounds in simulation: arrivals on a simulated clock, epochs and buffers."""
