"""A tokenizer of eight words, chat templates for it, and a conversation."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


WORDS = ["<pad>", "<user>", "<bot>", "<end>", "hi", "there", "yes", "no"]
MARKED = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}{{- '<bot> ' }}{%- generation %}"
    "{{- message['content'] + ' <end>' }}{%- endgeneration %}{{- ' ' }}{%- else %}"
    "{{- '<user> ' + message['content'] + ' ' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<bot> ' }}{%- endif %}"
)
UNMARKED = MARKED.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
# As reasoning models do: only the last answer is whole, earlier ones lose their first word.
FORGETFUL = UNMARKED.replace(
    "message['content'] + ' <end>'", "(message['content'] if loop.last else message['content'][3:]) + ' <end>'"
)
CONVERSATION: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "hi"},
    ]
}
SHAREGPT = {
    "conversations": [
        {"from": "human" if message["role"] == "user" else "gpt", "value": message["content"]}
        for message in CONVERSATION["messages"]
    ]
}
# <user> hi there <bot> yes <end> <user> no <bot> hi <end>
TOKENS = [1, 4, 5, 2, 6, 3, 1, 7, 2, 4, 3]
MASK = [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def word_tokenizer(chat_template: str | None = MARKED, extra_words: int = 0) -> PreTrainedTokenizerFast:
    """Splits at white space; `extra_words` are w8, w9, ..."""
    words = [*WORDS, *(f"w{number}" for number in range(8, 8 + extra_words))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=WORDS[1:3],
        chat_template=chat_template,
    )
