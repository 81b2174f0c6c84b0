"""One file a method; each has a config, ``attach``, ``penalty``, ``update``, ``log_odds``."""
