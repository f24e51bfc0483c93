"""`graceful-close check`: a test of whether a server's close loses its early replies.

`address` parses the server's address, and `upload` describes the request. `connecting` and
`attempt` make one try, and `reply` parses the reply as it arrives. `outcome` lists the possible
outcomes and the kinds of client, `verdict` derives the verdict from many tries, and `remedy`
the advice. `rendering` formats the findings as text, JSON and XML, and `command` is the command
line.
"""
