"""The decompositions of the evidence lower bound."""
