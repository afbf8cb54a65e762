"""Ray, for work on more than one machine: how it is joined, and tasks that survive their workers.

Nothing here knows what a task does; Ray is only imported where it is used.
"""
