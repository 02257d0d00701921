"""A coverage-guided fuzzer of every reader of files: `python -m fuzz --minutes 20` (the extra fuzz brings atheris)."""
