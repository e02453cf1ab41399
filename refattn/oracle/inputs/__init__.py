"""Inputs that bring mistakes out."""
