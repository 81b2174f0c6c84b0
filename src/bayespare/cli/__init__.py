"""The command line: ``bayespare VERB key=value ...``."""
