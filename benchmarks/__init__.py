"""What things cost: each module prints a measurement that anyone can repeat."""
