"""Sampled answers: their records, how they are drawn, judged and summed up."""
