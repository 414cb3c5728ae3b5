"""Roof: the command line, recipes, checks of the machine; starts the other floors by import string."""
