"""The web page: a chat over the server's engine, drawn by Gradio."""
