"""Texts: the instruction template, and the tokens that a model reads and learns."""
