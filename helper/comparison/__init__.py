"""Attentions compared in the miniature world: the same data, seeds and settings for each (`helper.compare`)."""
