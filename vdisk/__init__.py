"""Disk images, network block devices and the machines that boot from them."""
