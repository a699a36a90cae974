"""The sum of many vectors, and nothing else about them."""
