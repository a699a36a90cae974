"""Benchmarks that anybody can repeat: each module is a command."""
