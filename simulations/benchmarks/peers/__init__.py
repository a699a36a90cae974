"""The engines that are compared, each a script of its own, run in the environment it belongs to."""
