"""The commands of `pangu-trl`, one module each.

A module has `SUMMARY` (a line of the help), `add_options(parser)` and `run(args)`, which imports what only it needs.
`--help` takes about three seconds all the same: the package itself imports torch and the model classes of transformers,
because `import pangu_trl` is what registers GPTPangu.
"""
