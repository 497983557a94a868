"""`python -m autopeft.cli`, where the command is not on the path."""

from autopeft.cli.app import main

if __name__ == "__main__":
    main()
