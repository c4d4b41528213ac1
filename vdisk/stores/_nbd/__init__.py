"""The parts of the NBD client that waits: sockets, connections, and what happens when one is lost.

::

    address     where a server listens, in all the ways of writing it
    tls         credentials of a client
    channel     a stream to the server, encrypted or not
    handshake   the negotiation, carried out over a channel
    requests    what is asked of a server
    connection  many requests under way in one channel
    journal     acknowledged writes that no flush has covered
    pool        several connections, replaced when they are lost
    status      extents from block status
    kernel      handing a connection to a /dev/nbdN

:class:`vdisk.stores.nbd.NbdStore` puts them together; the protocol itself is :mod:`vdisk.nbd`.
"""
