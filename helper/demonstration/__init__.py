"""Real parts and dialogues about real images, for the demonstration and the comparison of attentions.

The parts and images are files of packages in requirements-demo.txt; nothing of them is in this repository.
"""
