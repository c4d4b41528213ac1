"""The machine's screen, keyboard and mouse for people: in a terminal, by VNC, in a browser."""
