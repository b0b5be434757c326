"""The prompts of `chat_qwen.make_context` as a Jinja template, for engines and for transformers.

Engines turn the whole rendered text into ids, so there a marker that a user has typed would be a marker. The template
refuses such texts. It is the same rule as in `chat_qwen` and in training; tests/model/test_chat_template.py compares.
"""

CHAT_TEMPLATE = r"""
{%- set markers = ['<|im_start|>', '<|im_end|>', '<|endoftext|>', '<|extra_', '<img>', '</img>', '<imgpad>'] -%}
{%- set seen = namespace(images=0, typed='', text='') -%}
{%- if tools -%}
  {{- raise_exception('tools: this chat template has none; describe them in a message') -}}
{%- endif -%}
{%- if messages[0]['role'] != 'system' -%}
  {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set where = 'messages[' ~ loop.index0 ~ ']' -%}
  {%- if message['role'] not in ['system', 'user', 'assistant'] or (message['role'] == 'system' and not loop.first) -%}
    {{- raise_exception(where ~ '.role: use user or assistant, and system for the first message alone') -}}
  {%- endif -%}
  {%- set seen.typed = '' -%}
  {%- set seen.text = '' -%}
  {%- if message['content'] is string -%}
    {%- set seen.typed = message['content'] -%}
    {%- set seen.text = message['content'] -%}
  {%- elif not message['content'] -%}
    {{- raise_exception(where ~ '.content: it is missing; use a text or a list of parts') -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'text' -%}
        {%- set seen.typed = seen.typed ~ part['text'] -%}
        {%- set seen.text = seen.text ~ part['text'] -%}
      {%- elif part['type'] in ['image', 'image_url'] and message['role'] == 'user' -%}
        {%- set seen.images = seen.images + 1 -%}
        {%- set seen.typed = seen.typed ~ '\n' -%}
        {%- set seen.text = seen.text ~ 'Picture ' ~ seen.images ~ ': <img></img>\n' -%}
      {%- else -%}
        {{- raise_exception(where ~ '.content: use parts of type text, and image or image_url from the user') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- for marker in markers -%}
    {%- if marker in seen.typed -%}
      {{- raise_exception(where ~ ': a text may not hold ' ~ marker ~ '; images are parts, markers are left out') -}}
    {%- endif -%}
  {%- endfor -%}
  {{- '<|im_start|>' ~ message['role'] ~ '\n' ~ seen.text ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
