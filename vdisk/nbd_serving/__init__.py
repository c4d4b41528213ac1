"""The parts of the NBD server; :mod:`vdisk.nbd_server` puts them together.

::

    listeners  sockets that accept                      limits    how much of everything
    client     one connection: handshake, end           access    who may use what
    transmission   requests in, replies out             tls       credentials
      fast         many plain requests at once          channel   a non-blocking socket
        fast_reads, fast_writes                         sending   replies put together
      execution    the others, in worker threads        outbox    what waits to be sent
    export     a device and how it is offered           pace      when to send early
    sources    exports that are opened when wanted      statistics, metrics

All of it runs in the thread of one event loop, except ``execution`` and what opens images,
which run in worker threads.  The protocol itself is :mod:`vdisk.nbd`.
"""
