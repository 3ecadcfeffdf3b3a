"""The command line: flags in, rendered progress and exit codes out. Nothing else prints, nothing here computes."""
