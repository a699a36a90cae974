"""The engines compared: each is a script, run in the environment that it needs."""
