"""Rounds: from prompts to an aligned model, again and again, as one command (docs/rounds.md).

settings.py reads the file, steps.py says which commands make a round and where each leaves its work, loop.py runs those
that are missing, launch.py starts a command on the processes of this machine or of all, choice.py decides which model
is kept, report.py shows what came of it.
"""
