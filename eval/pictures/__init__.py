"""The drawings of the shipped evaluation sets: `python -m eval.pictures.make` draws them all again."""
