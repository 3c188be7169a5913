"""Examine every image of DATA and report what would spoil a result."""
