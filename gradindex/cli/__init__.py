"""The command line: `main` has the group and the small commands, the others one each.

`options` turns text into values, `messages` go to stderr.
"""
