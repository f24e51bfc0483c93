"""Early replies that arrive complete, from real servers to real clients."""
