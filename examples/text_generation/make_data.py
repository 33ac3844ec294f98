"""Write train.txt and test.txt: the log of a harbour, drawn from a grammar, always the same.

    python make_data.py [FOLDER] [--train 2000] [--test 300]

A line is an entry. As the grammar is known, so are two things that a network can be measured by:
the entropy of a character, below which no network comes on the test file, and whether an entry that
it wrote is one that the grammar has. Some words follow from others far before them: the state of
the sea from the force of the wind, and the kind of a ship, said twice, from its name.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from pathlib import Path

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WINDS = ["north", "east", "south", "west", "northwest", "southeast"]
SEAS = {"light": "calm", "fresh": "rough", "strong": "high", "variable": "smooth"}
SHIPS = {
    **{"Anna": "brig", "Helena": "brig", "Two Brothers": "brig"},
    **{"Morning Star": "schooner", "Swallow": "schooner", "Patience": "schooner"},
    **{"Perseverance": "barque", "Old Tom": "barque"},
}
PORTS = ["Lisbon", "Bergen", "Riga", "Bristol", "Cadiz", "Hull"]
GOODS = ["salt", "timber", "wine", "oranges", "herring", "wool", "iron", "rope"]
ENDS = ["lies at the quay", "lies at anchor", "left on the tide", "waits for a pilot"]


def entry(draw: random.Random) -> tuple[str, float]:
    """Return a line of the log, and how many bits its choices have."""
    wind, ship = draw.choice(list(SEAS)), draw.choice(list(SHIPS))
    if draw.random() < 0.5:
        text = f"{draw.choice(DAYS)}: wind {draw.choice(WINDS)}, {wind}, the sea {SEAS[wind]}."
        choices = [2, len(DAYS), len(WINDS), len(SEAS)]
    else:
        text = (
            f"From {draw.choice(PORTS)}, with {draw.choice(GOODS)}: the {ship}, a {SHIPS[ship]};"
            f" the {SHIPS[ship]} {draw.choice(ENDS)}."
        )
        choices = [2, len(SHIPS), len(PORTS), len(GOODS), len(ENDS)]
    return text + "\n", sum(math.log2(count) for count in choices)


def _one_of(words: list[str]) -> str:
    return "|".join(words)


_WEATHER = re.compile(
    f"({_one_of(DAYS)}): wind ({_one_of(WINDS)}), ({_one_of(list(SEAS))}), the sea (\\w+)\\."
)
_ARRIVAL = re.compile(
    f"From ({_one_of(PORTS)}), with ({_one_of(GOODS)}): the ({_one_of(list(SHIPS))}), a (\\w+);"
    f" the (\\w+) ({_one_of(ENDS)})\\."
)


def is_entry(line: str) -> bool:
    """Whether the grammar has a line: its words, and those that follow from others."""
    weather, arrival = _WEATHER.fullmatch(line), _ARRIVAL.fullmatch(line)
    if weather is not None:
        return SEAS[weather[3]] == weather[4]
    return arrival is not None and arrival[4] == arrival[5] == SHIPS[arrival[3]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.txt and test.txt.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=300)
    arguments = parser.parse_args()
    draw = random.Random(11)
    for name, count in (("train", arguments.train), ("test", arguments.test)):
        entries = [entry(draw) for _ in range(count)]
        text = "".join(line for line, _ in entries)
        path = arguments.folder / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        bits = sum(found for _, found in entries) / len(text)
        print(f"{path}: {count} entries, {len(text)} characters, {bits:.3f} bits a character")


if __name__ == "__main__":
    main()
