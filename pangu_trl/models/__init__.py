"""What a loaded model needs, whichever stage asks; imports no stage."""
