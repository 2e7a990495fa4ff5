"""Every network that can be had, folded through every front end, and what came of it.

python -m benchmarks.zoo            fold what has not been folded yet, then write docs/zoo.md and docs/zoo.png
python -m benchmarks.zoo --help     shards, one front end, one network, times
"""
