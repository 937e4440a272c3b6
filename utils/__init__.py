"""What training, chat and evaluation share: conversations, processes, files, the model and the data."""

import logging

# Trainer and peft import bitsandbytes where it is installed, which warns of kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
