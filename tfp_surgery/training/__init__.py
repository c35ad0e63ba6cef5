"""Objectives that are maximised in training, and callbacks."""
