"""Benchmarks: each is one command that runs this project and its peers side by side (see README.md here)."""
