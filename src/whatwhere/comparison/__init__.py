"""From a design of arms and seeds to trainings, and from their figures to a verdict."""
