"""The commands of `pangu-trl`, one module each.

A module has `SUMMARY` (a line of the help), `add_options(parser)` and `run(args)`. What takes seconds to import is
imported by `run`, so that `--help` answers at once.
"""
