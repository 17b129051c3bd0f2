"""Text on both sides of the model: tokenizer, chat templates, stop strings, instructions of the tasks."""
