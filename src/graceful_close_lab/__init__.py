"""The lab: experiments on loopback that compare ways to close; and `check`, for other servers.

The command `graceful-close` is public. The modules are private, and any version may change
them. The lab imports the library, and the library does not import the lab.

The modules that measure (`linger_experiments`, `lost_reply`, `this_platform`) do not depend on
the output. They return findings, and record a `timeline` of calls and packets. `tables` makes
tables of the findings, and `layout` makes lines of the tables. `drawing` draws a timeline with
characters, `picture` draws it as SVG, and `formatting` formats the numbers. `show` and `live`
write to a terminal, `files` writes files, and `command` is the command line.
"""
