"""The name by which transformers hands a cache from call to call: `past_key_values`, and from 5.24 on `cache`."""

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE_NAMES = ("cache", "past_key_values")
"""Both, the newer first."""

CACHE = next(name for name in CACHE_NAMES if name in {each.name for each in fields(BaseModelOutputWithPast)})
"""The one of this transformers, for arguments and for outputs."""
