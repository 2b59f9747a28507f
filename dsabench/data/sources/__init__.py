"""The sources of text, one file each."""
