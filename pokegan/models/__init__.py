"""Families of games: networks, and the recipes that say how they are trained."""
