"""Entry point of `python -m shardhub`."""

from shardhub.cli import main

if __name__ == "__main__":
    main()
