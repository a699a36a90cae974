"""The agent: train, privatize, mask, refuse."""
