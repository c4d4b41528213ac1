"""One of several processes that want the same image: ``contender.py IMAGE SECONDS SEED``.

For so many seconds, and until it has read and written at least once, it opens the image, for
writing or for reading, and prints a letter: "L" that the image is locked, "R" that it read, "W"
that it added one to the counter in the image and closed it.
A second lock on a file beside the image, which nobody but contenders uses, tells whether the first
kept out whom it should: whoever has opened the image must get it at once.
"""

from __future__ import annotations

import fcntl
import random
import sys
import time

from vdisk.errors import ImageLockedError
from vdisk.opening import open_image

PLACES = (0, 1 << 20)
"""Where the counter stands, twice."""


def main() -> None:
    path, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    rng, end, missing = random.Random(seed), time.monotonic() + seconds, {"W", "R"}
    # Opened first, so that a killed process loses this lock before the image's.
    with open(f"{path}.witness", "rb") as witness:
        while missing or time.monotonic() < end:
            done = once(path, witness.fileno(), rng, writing=rng.random() < 0.7)
            print(done, end="", flush=True)
            missing.discard(done)


def once(path: str, witness: int, rng: random.Random, *, writing: bool) -> str:
    try:
        disk = open_image(path, format="qcow2", readonly=not writing)
    except ImageLockedError:
        time.sleep(rng.random() / 200)
        return "L"
    try:
        fcntl.flock(witness, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        counters = [int.from_bytes(disk.read(place, 8), "big") for place in PLACES]
        assert counters[0] - counters[1] in (0, 1), counters
        time.sleep(rng.random() / 200)
        if writing:
            for place in PLACES:
                disk.write(place, (counters[0] + 1).to_bytes(8, "big"))
                disk.flush()
        fcntl.flock(witness, fcntl.LOCK_UN)
    finally:
        disk.close()
    return "W" if writing else "R"


if __name__ == "__main__":
    main()
