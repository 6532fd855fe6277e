"""A paper run again, as one command (docs/papers.md): `mmfast reproduce NAME --root DIR`.

paper.py reads recipes/papers/NAME.toml, weights.py and inputs.py say what of it is there, need.py what the run takes of
this machine, run.py hands it to the rounds, table.py sets the published figures beside ours.
"""
