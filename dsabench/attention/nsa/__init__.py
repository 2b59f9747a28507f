"""Native sparse attention: its layer, compression, specification, and the streaming form."""
