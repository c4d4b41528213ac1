"""The software processor: decoding, semantics, and the code that comes from them.

docs/how-the-recompiler-works.md is the way in.
"""
