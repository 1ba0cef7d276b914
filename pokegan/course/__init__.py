"""The lessons that come along, exercises that answer, and what a teacher needs for a workshop."""
