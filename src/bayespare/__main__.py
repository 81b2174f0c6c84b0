"""``python -m bayespare VERB key=value ...``."""

from bayespare.cli.main import console

if __name__ == "__main__":
    console()
