"""A wire with a hand on it: what the closers really put on the network, packet by packet.

Two network namespaces, a TUN device in each, and a thread that carries packets between them as
the test's rules say: `link` carries, `packets` reads and forges, `rules` is the language of a
test, `record` remembers, `laid` is the wire that a test holds, and `proof` compares what a
closer claims with what went over it.
"""
