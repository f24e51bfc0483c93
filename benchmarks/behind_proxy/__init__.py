"""Early replies behind a proxy: see `__main__`."""
