"""Inverse convolutions beside what others offer."""
