"""What a run is: fields, configs, overrides, identity."""
