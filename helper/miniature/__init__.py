"""The miniature world, for tests: small images of coloured shapes, and questions about them, in published formats."""
