"""Other places to run the library in: other TCP stacks, processors, Pythons and kernels.

`python -m elsewhere` lists the places. `python -m elsewhere s390x` tries the promises of the library in
one place. `python -m elsewhere s390x python -c 'import sys; print(sys.byteorder)'` runs another command
there.

If a place cannot be had on this machine, the program says why, and its exit code is UNAVAILABLE. Every
other exit code is that of the command, which has run.

The program needs root on Debian. It unpacks Debian's packages into a folder (`--work`, by default
build/elsewhere) and installs nothing. A later run uses the same folder again.
"""

# The exit code for a skipped test in the GNU build system. pytest and the promises never use this code.
UNAVAILABLE = 77
