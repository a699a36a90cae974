"""Where virtual clients train: this process, several processes, GPUs or a Ray cluster."""
