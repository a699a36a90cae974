"""A small witness: it cosigns the checkpoints of logs that only ever grow (tlog-witness).

Nobody can rewrite a log, or show two versions of it to two people, without the witness's help.
"""
