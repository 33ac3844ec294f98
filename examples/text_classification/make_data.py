"""Write train.tsv and test.tsv: short reviews, each with its label, in the same way each time.

    python make_data.py [FOLDER] [--train 4000] [--test 1000]

A review says of one or two things that they were good or bad, and of the whole, too; only the
latter makes its label, and the others point the other way as often as not. Words of praise may be
negated ("not good at all"). So counting words does not suffice. No review of the test file is in
the training file.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

GOOD = ["good", "great", "lovely", "superb", "fine", "charming", "clever", "moving", "pleasant"]
BAD = ["bad", "awful", "dull", "poor", "clumsy", "tedious", "flat", "dreadful", "annoying"]
THINGS = [
    *("plot", "music", "acting", "ending", "opening", "dialogue", "lighting", "pace", "cast"),
    *("story", "camera work", "script", "sound", "wardrobe", "title song", "first hour"),
]
WHOLE = ["the film", "the evening", "the whole thing", "this one", "the show", "all of it"]
NEITHER = [
    "we saw it on a {day}",
    "it runs for {number} minutes",
    "my {relative} had the tickets",
    "there were {number} people in the room",
    "it was made in the {number}s",
    "a {relative} of mine fell asleep and woke up again",
    "we took the bus home on that {day}",
]
DAYS = ["monday", "tuesday", "friday", "saturday", "sunday"]
RELATIVES = ["sister", "uncle", "neighbour", "cousin", "friend"]
LABELS = ("negative", "positive")


def opinion(draw: random.Random, about: str, positive: bool) -> str:
    """Return a clause that praises something, or finds fault with it."""
    is_negated = draw.random() < 0.4
    word = draw.choice(GOOD if positive != is_negated else BAD)
    if is_negated:
        form = draw.choice(["{0} was not {1} at all", "{0} was never {1}", "nobody found {0} {1}"])
    else:
        form = draw.choice(["{0} was {1}", "{0} was really {1}", "i found {0} {1}"])
    return form.format(about, word)


def remark(draw: random.Random) -> str:
    """Return a clause that says nothing of what the writer thinks."""
    return draw.choice(NEITHER).format(
        day=draw.choice(DAYS), relative=draw.choice(RELATIVES), number=draw.randrange(20, 100)
    )


def review(draw: random.Random) -> tuple[str, str]:
    """Return a review and its label."""
    positive = draw.random() < 0.5
    verdict = opinion(draw, draw.choice(WHOLE), positive)
    # What is said of single things points the other way as often as not.
    details = [
        opinion(draw, f"the {draw.choice(THINGS)}", draw.random() < 0.5)
        for _ in range(draw.randrange(1, 3))
    ]
    clauses = [*details, verdict]
    draw.shuffle(clauses)
    if draw.random() < 0.7:
        clauses.insert(draw.randrange(len(clauses) + 1), remark(draw))
    joints = [draw.choice([", and ", ". ", ", ", "; "]) for _ in clauses[1:]]
    text = clauses[0] + "".join(a + b for a, b in zip(joints, clauses[1:], strict=True))
    return f"{text}{draw.choice(['.', '!', ''])}", LABELS[positive]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.tsv and test.tsv.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    arguments = parser.parse_args()
    draw = random.Random(7)
    found: dict[str, str] = {}
    while len(found) < arguments.train + arguments.test:
        text, label = review(draw)
        found[text] = label
    rows = [f"{text}\t{label}\n" for text, label in found.items()]
    for name, part in (("train", rows[: arguments.train]), ("test", rows[arguments.train :])):
        path = arguments.folder / f"{name}.tsv"
        path.write_text("".join(part), encoding="utf-8")
        print(f"{path}: {len(part)} reviews")


if __name__ == "__main__":
    main()
