"""Front ends: each reads a graph from one form of a network and writes convolutions into it."""
