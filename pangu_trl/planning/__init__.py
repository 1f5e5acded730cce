"""Memory per device and bytes on the wire of a run, computed from its recipe and accelerate configuration."""
