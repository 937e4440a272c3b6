"""Keys and values of images: computed once, kept, and read beside the text of any dialogue."""
