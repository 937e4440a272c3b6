"""A page to look at before training: what the data hold, what is bad in them, and what the model is taught."""
