"""The prompts of a log as small problems, with what the number of samples leaves open."""
