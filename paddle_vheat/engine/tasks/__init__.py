"""What a task is to the trainer: its data, its loss, its score."""
