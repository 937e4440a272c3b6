"""Records and images as files hold them: converted once per machine, then mapped."""
