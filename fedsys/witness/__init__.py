"""A small witness: it cosigns the checkpoints of logs that only ever grow (tlog-witness).

Whoever rewrites a log, or shows two people two of them, needs the witness's help for it.
"""
