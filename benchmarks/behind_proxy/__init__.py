"""What a proxy makes of early replies: see `__main__`."""
