"""The lab: what each way to close does, seen live on loopback.

Measuring (`linger_experiments`, `lost_reply`, `this_platform`) knows nothing of how it is told;
`tables` puts it into words, `show` onto a screen, and `command` is the command line.
"""
