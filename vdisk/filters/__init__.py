"""Block devices over block devices: windows, throttles, fault injection, write logs."""
