"""An OpenAI-compatible server over chat sessions: `python -m chat.serving --checkpoint_path FOLDER`."""
