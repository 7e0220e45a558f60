"""Training: the trainer, reference models, schedules."""
