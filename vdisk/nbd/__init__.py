"""The NBD protocol without I/O: bytes in, events out, bytes to send out.

No socket, no thread and no event loop here; a program of any shape drives the machines::

    handshake                               transmission
    ServerNegotiation  --SessionStarted-->  ServerTransmission      (server_*.py)
    ClientNegotiation  --SessionStarted-->  ClientTransmission      (client_*.py)

``receive_data(bytes)``, then ``next_event()`` until it returns ``None``.  In the handshake a
machine answers much by itself, so after every call send what ``data_to_send()`` holds; in the
transmission phase every message is the result of a call, which returns the buffers to send.

Layers, each knowing only those before it: ``wire`` (numbers, layouts), ``session`` (exports, what
was agreed), ``events``, ``options`` and ``replies`` (builders and parsers of messages), ``gate``
(what makes a request valid), the machines, ``connect`` (which options a client sends in which
order), ``bulk`` (the same parsing for many small requests at once), ``uri``.

Specification: NetworkBlockDevice/nbd, doc/proto.md with the branch extension-ext-header, and
doc/uri.md.
"""
