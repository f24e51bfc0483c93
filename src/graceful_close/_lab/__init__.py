"""The lab: what each way to close does, seen live on loopback; and `check`, for other servers.

Measuring (`linger_experiments`, `lost_reply`, `this_platform`) knows nothing of how it is told: it
gives findings, and a `story` of who did what when. `tables` puts the findings into words and
`layout` into lines; `drawing` and `picture` draw a story, with characters and as SVG. `show` and
`live` write to a terminal, `files` writes files, and `command` is the command line.
"""
