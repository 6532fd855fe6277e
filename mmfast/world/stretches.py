"""Where a caption says what is false. It is no part of grammar.py, whose bytes say which world a result is of."""

from __future__ import annotations

from mmfast.world import grammar
from mmfast.world.grammar import Kind
from mmfast.world.scenes import Scene


def false_stretches(text: str, scene: Scene) -> list[tuple[int, int, str]]:
    """Where `text` says what is false, as `judged` counts it: characters and kind of claim, in the order of the text.
    An object that is not there is found wherever it is named."""
    things, named = {thing.kind: thing for thing in scene.things}, grammar.claims(text).kinds
    places, said, found = grammar.places_of(scene), set[tuple[str, Kind]](), []
    for match in grammar._OBJECT.finditer(text):
        kind = (match[2], match[3])
        if kind not in things:
            twin = (grammar.TWINS[kind[0]], kind[1])
            recoloured = twin in things and twin not in named
            found.append((match.start(2), match.end(2 if recoloured else 3), "colour" if recoloured else "object"))
        elif match[1] and ("count", kind) not in said:
            said.add(("count", kind))
            if match[1] != grammar.NUMBERS[things[kind].count]:
                found.append((*match.span(1), "count"))
    for pattern, name in ((grammar._RELATION, "relation"), (grammar._WORD, "word")):
        for match in pattern.finditer(text):
            kind = (match[1], match[2])
            if kind in things and (name, kind) not in said:
                said.add((name, kind))
                if match[3] != (places.get(kind) if name == "relation" else things[kind].word):
                    found.append((*match.span(3), name))
    return sorted(found)
