"""Words of captions, without a download: nltk's tokeniser, and the sentence breaks that it wants first.

nltk's word_tokenize asks for the Punkt model, which its user must fetch. Here Punkt is given its list of short forms
alone. What else it has learnt decides only whether there is a break after a short form, a number or an initial; so no
other token can differ, and none of these names an object (tests/evals/test_text.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from mmfast.packages import how_to_install

# What Punkt's English model holds for a short form (nltk_data, tokenizers/punkt_tab, read 2026-11)
SHORT_FORMS = """
a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co col colo
conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen h h.c h.f h.m
i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj messrs mg mich minn
mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k r.t rep
reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c
w.r w.va w.w wash wed wis yr
"""


@cache
def _tools() -> tuple[Any, Any]:
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError:
        raise ValueError(f"words are found by nltk, which is not installed: {how_to_install('eval')}") from None
    known = PunktParameters()
    known.abbrev_types = {*SHORT_FORMS.split(), ". ."}  # the last one is how a spaced ellipsis ends
    return PunktSentenceTokenizer(known), NLTKWordTokenizer()


def words(text: str) -> list[str]:
    """The tokens of a text, punctuation among them."""
    sentences, tokeniser = _tools()
    return [token for sentence in sentences.tokenize(text) for token in tokeniser.tokenize(sentence)]


Lemmas = Callable[[str], str]  # a token -> its singular
