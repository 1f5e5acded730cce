"""Answers and decisions on them in the files of other tools: Argilla, Label Studio, spreadsheets."""
