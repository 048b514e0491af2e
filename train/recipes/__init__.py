"""Recipes that ship with edgefuse, one YAML file each."""
