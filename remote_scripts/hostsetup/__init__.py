"""The host's half of `fab setup`: puts one application's host side in place, or takes it off again.

It travels to the host with what it puts in place (see `bundle`), runs as root from a directory of its own,
and stays on no host. `main` is where it begins; `install` and `remove` are the two things that it does.
Everything is checked before it lands, each thing lands by one rename, and the same command again finishes
what was cut short.
"""
