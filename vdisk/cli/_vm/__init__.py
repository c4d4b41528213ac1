"""The subcommands of ``vdisk-vm``, and what they share."""
