"""``python -m lineup NAME``: the same as the command ``lineup NAME``; torchrun starts it so."""

from lineup.commands import main

if __name__ == "__main__":
    main()
