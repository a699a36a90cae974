"""Local procedures: any training of a model in place, a client at a time."""
