"""How much memory a training takes: foretold from shapes, and measured on the largest batch before the first step."""
