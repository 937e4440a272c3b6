"""What training, chat and evaluation share: conversations, processes, files, the model and the data."""
