"""The harness: the same server and client code, driven for many virtual clients."""
