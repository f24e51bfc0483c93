"""Trials of the library's guarantees: `python -m graceful_close lab --promises`.

They are for systems on which the tests have not run: another kernel, another Python, a sandbox.
`command` runs the trials in `one`, `many`, `servers` and `event_loops`, which use `trying` and
`exchange`.
"""
