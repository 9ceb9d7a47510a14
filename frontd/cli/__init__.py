"""Floor 7: the command line, one small module per group of verbs.

No module here imports pydantic, PyYAML, trio or cryptography at its top: `frontd --help` and shell completion stay
quick (a test looks at `sys.modules`).  `sample_app` and `devca` are the exceptions; they are imported when a verb needs
them.
"""
