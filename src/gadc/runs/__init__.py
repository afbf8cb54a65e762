"""One run of the command line: what a user names, what is done, and what is written of it."""
