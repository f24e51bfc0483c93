"""Replies that arrive whole: real servers that answer an upload early, and real clients."""
