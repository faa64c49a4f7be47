"""What the ecosystem tests ask of every target and draft: the same answers, and what it took."""

import torch


PROMPT = torch.tensor([[1, 2, 3, 4, 5]])
# int8 and 4-bit kernels take channels by the multiple.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 96}


def plain_answer(target, **settings) -> list[int]:
    return target.generate(PROMPT, max_new_tokens=20, do_sample=False, **settings)[0].tolist()


def drafted_answer(target, draft) -> tuple[list[int], list[int]]:
    """The answer, and the tokens that each cycle emitted."""
    output = target.generate(
        PROMPT, max_new_tokens=20, do_sample=False, assistant_model=draft, return_dict_in_generate=True
    )
    return output.sequences[0].tolist(), output.acceptance_lengths[0]


def assert_same_answers(target, draft) -> None:
    """Plain and drafted decoding agree, and the draft worked for it."""
    answer, lengths = drafted_answer(target, draft)
    assert answer == plain_answer(target)
    assert sum(lengths) == 20 - 1  # the prefill yields one
    assert len(lengths) < 20
