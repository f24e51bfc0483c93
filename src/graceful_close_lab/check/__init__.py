"""`python -m graceful_close check`: do early replies of a server survive its way to close?

`address` is what the user names, `attempt` one upload, `reply` the answer to it as it comes in,
`outcome` what can become of that, `verdict` what follows from many, `remedy` what to do about it;
`telling` puts it into words, and `command` is the command line.
"""
