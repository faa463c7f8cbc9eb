"""What is done to the programs from outside: kills, full disks, other writers, a system that fails."""
