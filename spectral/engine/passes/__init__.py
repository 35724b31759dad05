"""Rewrites of recorded programs."""
