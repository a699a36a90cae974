"""The coordinator: cohorts, rounds, strategies, durable state."""
