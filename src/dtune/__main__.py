"""`python -m dtune` is `dtune`."""

from dtune.cli import main

if __name__ == "__main__":
    main()
