"""Answers ranked by people: the page on which they do it, what they decided, how far they agree, and records of it."""
