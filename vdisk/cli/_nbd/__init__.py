"""The subcommands of ``vdisk-nbd``, one module each."""
