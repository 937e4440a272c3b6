"""The miniature world: small pictures of coloured shapes, and dialogues about them that can only be answered by looking.

`scenes` draws the pictures, `dialogues` asks about them, `world` writes both in the published datasets' file formats.
"""
