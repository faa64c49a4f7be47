"""
From a conversation to tokens and a mask of those that the assistant said.

Chat templates that mark assistant text with `{% generation %}` say it themselves. For the others the conversation is
rendered again up to every answer, without and with it, and the difference is the answer::

    all of it       <user> hi <bot> yes <end> <user> no <bot> hi <end>
    before turn 1   <user> hi <bot>
    with turn 1     <user> hi <bot> yes <end>
    before turn 2   <user> hi <bot> yes <end> <user> no <bot>
    with turn 2     <user> hi <bot> yes <end> <user> no <bot> hi <end>
    mask              0    0    0    1    1     0    0    0   1    1

That is right only if every rendering begins the full one, token for token, which is checked.

Next: `data.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


Message = dict[str, Any]

# ShareGPT's names of the roles.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def to_messages(conversation: Sequence[Mapping[str, Any]]) -> list[Message]:
    """
    Messages with `role` and `content`, also of those with ShareGPT's `from` and `value`.

    Raises:
        ValueError: if a message has neither, or ShareGPT's role is unknown.
    """
    return [_to_message(message) for message in conversation]


def _to_message(message: Mapping[str, Any]) -> Message:
    # Arrow fills the fields that a message does not have with None.
    found = {key: value for key, value in message.items() if value is not None}
    if "role" in found:
        return found
    if not {"from", "value"} <= found.keys():
        raise ValueError(
            f"A message has the fields {sorted(found)}, but needs `role` and `content`, or `from` and `value`."
        )
    if found["from"] not in ROLES:
        raise ValueError(f"A message is from {found['from']!r}, but must be from one of {', '.join(ROLES)}.")
    return {"role": ROLES[found["from"]], "content": found["value"]}


def tokenize_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """
    Renders a conversation with the tokenizer's chat template and marks the assistant's tokens.

    Args:
        messages (`Sequence[dict]`): with `role` and `content`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the target's.

    Returns:
        `tuple[list[int], list[int]]`: the tokens, and 1 where the assistant speaks, else 0.

    Raises:
        ValueError: if there is no chat template, or it neither marks assistant text nor renders the beginning of a
            conversation as it renders the whole.
    """
    if GENERATION_MARK.search(tokenizer.get_chat_template()):
        marked: Any = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return marked["input_ids"], marked["assistant_masks"]
    return _mask_by_rendering_beginnings(messages, tokenizer)


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False
) -> list[int]:
    """Tokens of a conversation in the chat template, as a prompt if `add_generation_prompt`."""
    encoded: Any = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
    )
    return encoded["input_ids"]


def _mask_by_rendering_beginnings(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    input_ids = render(messages, tokenizer)
    mask = [0] * len(input_ids)
    # Nothing asked for a greeting in the first place: it is context.
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant" and turn > 0]
    for turn in answers:
        before = render(messages[:turn], tokenizer, add_generation_prompt=True)
        _check_beginning(before, input_ids, turn, "before", tokenizer)
        until = render(messages[: turn + 1], tokenizer)
        _check_beginning(until, input_ids, turn, "up to", tokenizer)
        mask[len(before) : len(until)] = [1] * (len(until) - len(before))
    return input_ids, mask


def _check_beginning(
    beginning: list[int], input_ids: list[int], turn: int, which: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    if input_ids[: len(beginning)] == beginning:
        return
    pairs = zip(beginning, input_ids, strict=False)
    same = next((i for i, (found, expected) in enumerate(pairs) if found != expected), len(input_ids))
    found, expected = (tokenizer.decode(ids[max(0, same - 4) : same + 8]) for ids in (beginning, input_ids))
    raise ValueError(
        "The chat template does not mark assistant tokens, and they cannot be told from renderings either: the "
        f"conversation {which} message {turn} is rendered as {found!r}, but within the whole conversation as "
        f"{expected!r} (from token {same}). Put `{{% generation %}}` ... `{{% endgeneration %}}` around the "
        "assistant's text in `tokenizer.chat_template`, end every conversation after its first answer if the template "
        "renders earlier answers differently, or set `assistant_only_loss=False`."
    )


__all__ = ["Message", "render", "to_messages", "tokenize_conversation"]
