"""Chatting with a checkpoint: the session that everything else stands on, and the terminal."""
