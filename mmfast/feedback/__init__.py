"""Candidates and their scores into pairs."""
