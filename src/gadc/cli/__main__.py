"""`python -m gadc.cli`, for launchers that start modules."""

from gadc.cli import main

if __name__ == "__main__":
    main()
