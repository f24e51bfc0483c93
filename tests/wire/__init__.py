"""Tests of the packets that the functions send, on a simulated link.

There are two network namespaces with a TUN device in each, and a thread that carries packets
between them according to the rules of a test. `link` carries the packets, `packets` reads and
forges them, `rules` has the terms of rules, and `record` stores the packets. `laid` has the
wire that a test uses, and `proof` compares the result of a close with the recorded packets.
"""
