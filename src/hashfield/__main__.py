"""`python -m hashfield`."""

from hashfield.cli.main import main

if __name__ == "__main__":
    main()
