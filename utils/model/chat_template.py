"""The published dialogue format as a Jinja chat template, which is saved with every checkpoint.

The text of a conversation, with images numbered from its beginning to its end, one BOS, and an EOS after each
answer::

    {system}

    ### Image 1: <image>
    ### Question: {question}
    ### Answer: {answer}</s>

    ### Image 2: <image>
    ### Image 3: <image>
    ### Question: ...
"""

DEFAULT_SYSTEM = "You are a powerful vision-language assistant."

DEFAULT_CHAT_TEMPLATE = (
    r"""
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- else -%}
        {{- content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') | trim -}}
    {%- endif -%}
{%- endmacro -%}
{%- set count = namespace(images=0) -%}
{%- if messages[0].role == 'system' -%}
    {{- bos_token ~ text_of(messages[0].content) -}}
    {%- set rounds = messages[1:] -%}
{%- else -%}
    {{- bos_token ~ '"""
    + DEFAULT_SYSTEM
    + r"""' -}}
    {%- set rounds = messages -%}
{%- endif -%}
{%- for message in rounds -%}
    {%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('the roles must be: system (optional), then user and assistant in turn') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{- '\n\n' -}}
        {%- if message.content is not string -%}
            {%- for part in message.content if part.type == 'image' -%}
                {%- set count.images = count.images + 1 -%}
                {{- '### Image ' ~ count.images ~ ': <image>\n' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '### Question: ' ~ text_of(message.content) -}}
    {%- else -%}
        {{- '\n### Answer:' -}}
        {%- generation -%}{{- ' ' ~ text_of(message.content) ~ eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\n### Answer:' -}}
{%- endif -%}
"""
)
