"""The miniature world: small pictures of coloured shapes, and dialogues that can only be answered by looking at them.

`scenes` draws the pictures, `dialogues` asks about them, `world` writes both in the published datasets' file formats.
"""
