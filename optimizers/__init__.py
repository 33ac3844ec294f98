"""The searches: budget, journal, statistics and verdict; pruning in ``pruning/``."""
