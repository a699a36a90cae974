"""Who takes part in a round, and what aborted rounds and absent committees cost."""
