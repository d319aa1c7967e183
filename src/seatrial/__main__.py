"""``python -m seatrial``: the same command as ``seatrial``."""

from seatrial.cli.main import main

if __name__ == "__main__":
    main()
