"""The embedded world: pictures, flawed captions, preference pairs, and models small enough for tests."""

import mmfast.packages  # noqa: F401, before anything that imports transformers
