"""Figures by arm and seed from the folders of finished runs, of any program. Never imports torch."""
