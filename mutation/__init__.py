"""Mutation tests: does a test fail if a line of the library is changed?

`python -m mutation` changes the modules that modules.toml names, one change at a time, runs the tests
that concern each module, and lists the changes that no test noticed. The changes of equivalents.toml
are left out, because they change nothing that a caller can observe.
"""
