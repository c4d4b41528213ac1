"""What is behind a guest's network card.

:mod:`tap`: an interface of the host, which :mod:`tun` opens.  The others are a network that is
this program, a gateway behind which a guest reaches the host's sockets, one file a layer:
:mod:`packets` (Ethernet, ARP, IPv4, ICMP, UDP, TCP as bytes), :mod:`tcp` (one connection's
other end), :mod:`dhcp`, :mod:`dns` and :mod:`names`, :mod:`tftp`, :mod:`reactor` (the host's
sockets), :mod:`user` (the gateway that leads from one to the other).
"""
