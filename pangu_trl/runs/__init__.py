"""How a run starts, saves, is watched and stops, whichever stage it trains."""
