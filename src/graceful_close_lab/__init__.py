"""The lab: what each way to close does, seen live on loopback; and `check`, for other servers.

`graceful-close` starts it. The command is public; the modules are not, and any version may
change them. The lab imports the library, and the library does not import the lab.

Measuring (`linger_experiments`, `lost_reply`, `this_platform`) knows nothing of how it is told: it
gives findings, and a `story` of who did what when. `tables` puts the findings into words and
`layout` into lines; `drawing` and `picture` draw a story, with characters and as SVG; `formatting`
writes numbers for them. `show` and `live` write to a terminal, `files` writes files, and `command`
is the command line.
"""
