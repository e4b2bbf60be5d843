"""Runs beside each other: parity of the two frameworks, and techniques compared."""
