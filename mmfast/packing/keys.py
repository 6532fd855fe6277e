"""Names of responses: the keys of the reference cache (DESIGN section 6)."""

from __future__ import annotations

import hashlib

import numpy as np

from mmfast.data.records import Branch


def response_key(branch: Branch) -> str:
    """sha256 of the ids of the whole path (an image is one placeholder), the spans that are scored, and its images.

    Template, EOS and length limit act through the ids; weights, beta and averaging are not in it, so a sweep over
    them reads the same cache.
    """
    spans = np.asarray(branch.spans, dtype="<i4").reshape(-1)
    ids = np.ascontiguousarray(branch.ids, dtype="<i4")
    digest = hashlib.sha256(np.asarray([len(ids), len(spans), len(branch.images)], dtype="<i8").tobytes())
    digest.update(ids.tobytes())
    digest.update(spans.tobytes())
    digest.update("\n".join(branch.images).encode())
    return digest.hexdigest()
