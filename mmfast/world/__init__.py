"""The embedded world: pictures, flawed captions, preference pairs, and models small enough for tests."""

import mmfast.quiet  # noqa: F401, before anything that imports transformers
