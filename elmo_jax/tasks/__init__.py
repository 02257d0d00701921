"""What vectors know: tasks that measure models and baselines on files in documented formats.

A task reads a file (`formats`), asks systems for the vectors of its sentences (`systems`), learns or compares on them
(`probes`, `tagging`, ..), and gives figures (`report`) that `evaluate` collects into one table.
"""
