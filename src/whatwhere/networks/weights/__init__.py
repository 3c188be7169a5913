"""Weights files: read safely, translated between layouts, loaded completely or not at all."""
