"""`graceful-close watch`: it reports which processes of this machine lose replies.

The kernel is the only source. `counters` reads its counters in /proc/net/netstat. `tracefs`
reads a trace of every reset, with the process that sent it, and `events` parses the lines of
the trace. `socket_notices` reads what a socket had sent and received, from the kernel's notices
of ended sockets (sock_diag). `reset_log` combines events and notices, `judgement` decides whether
a reset lost a reply, and `processes` finds the process. `rendering` formats the result,
`outputs` writes it, `watching` has the loop, and `command` is the command line.
"""
