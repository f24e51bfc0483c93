"""`graceful-close watch`: which process of this machine loses replies, now.

Two sources, both the kernel's. `counters` reads what it counts for everybody in
/proc/net/netstat. `tracefs` is told of every reset as it is sent, and by whom; `events` reads what
it says, and `obituaries` what a socket had sent and had not, from the kernel's notices of sockets
that end (sock_diag). `ledger` brings them together, `judgement` says what a reset cost, and
`processes` whose it was. `telling` puts it into words, `outlets` says where they go, `watching` is
the loop, and `command` the command line.
"""
