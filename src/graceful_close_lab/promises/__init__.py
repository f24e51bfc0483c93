"""What the library promises, tried on the running system: `python -m graceful_close lab --promises`.

For a system that its tests have never seen: another kernel, another Python, a sandbox. `command` runs
what `one`, `many`, `servers` and `event_loops` try, by what `trying` and `exchange` give them.
"""
