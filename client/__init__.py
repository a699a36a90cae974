"""The agent: train, privatize, encrypt, refuse."""
