"""The Remote Framebuffer protocol (RFC 6143) without sockets: a server's side of it."""
