"""From the figures of trainings to a verdict; never imports torch."""
