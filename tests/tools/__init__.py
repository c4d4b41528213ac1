"""What the tests share: finding and running the programs that vdisk is held against."""
