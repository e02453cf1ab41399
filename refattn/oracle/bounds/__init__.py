"""How far a correct kernel may be off, derived from its spec; README.md beside this file has the
derivation.
"""
