"""`python -m mmfast`: the `mmfast` command."""

from mmfast.cli import main

if __name__ == "__main__":
    main()
