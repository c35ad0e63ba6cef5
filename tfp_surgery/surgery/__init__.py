"""Decompositions of the evidence lower bound."""
