"""Names of responses: the keys of the reference cache (DESIGN section 6)."""

from __future__ import annotations

import hashlib

from mmfast.data.records import Branch


def response_key(branch: Branch) -> str:
    """sha256 of the ids of the whole path (an image is one placeholder), the spans that are scored, and its images.

    Template, EOS and length limit act through the ids; weights, beta and averaging are not in it, so a sweep over
    them reads the same cache.
    """
    spans = ",".join(f"{start}-{end}" for start, end in branch.spans)
    digest = hashlib.sha256(f"{spans}|{','.join(branch.images)}|".encode())
    digest.update(branch.ids.astype("<i4", copy=False).tobytes())
    return digest.hexdigest()
