"""Simulation: a deployment's server and client code, run for many virtual clients."""
