"""The commands of `pangu-trl`, one module each.

A module has `SUMMARY` (a line of the help), `add_options(parser)` and `run(args)`, which imports what only it needs:
loading torch takes seconds, which a help page, a wrong option or a file that is not there need not wait for.
"""
