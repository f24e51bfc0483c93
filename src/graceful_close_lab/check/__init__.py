"""`graceful-close check`: do early replies of a server survive its way to close?

`address` is what the user names and `upload` what is sent there; `connecting` and `attempt` make
one try, `reply` reads the answer as it comes in, `outcome` says what can become of it for which
kind of client, `verdict` what follows from many tries, and `remedy` what to do about it; `telling`
puts it into words, JSON and XML, and `command` is the command line.
"""
