"""Commands beside training and testing; ``python -m tools`` lists them."""

import sys

from utils import interrupt

if sys.argv[:1] == ["-m"]:  # so it is while ``python -m tools.NAME`` imports what the command needs
    interrupt.end_when_interrupted()
