"""What the host programs share. Standard library of Debian's python3 only."""
