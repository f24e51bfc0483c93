"""Other places to run in: another TCP stack, other processors, Pythons and kernels.

`python -m elsewhere` lists them; `python -m elsewhere s390x` tries there what the library promises;
`python -m elsewhere s390x python3 -c 'import sys; print(sys.byteorder)'` runs something else. As root on
Debian. Everything is made of Debian's packages, unpacked into a folder (`--work`, build/elsewhere
unless told) and installed nowhere; what was made before is used again.
"""
