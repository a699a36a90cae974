"""Local training from an approved graph: numpy alone, in a process that can only compute."""
