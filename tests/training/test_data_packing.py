"""Packing: nothing lost, nothing too long, documents told apart."""

from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_griffin.training.packing import best_fit_decreasing, pack_columns


def test_each_document_goes_where_it_leaves_the_least_space():
    """
    Capacity 10. In the order 7, 5, 4, 3, 2 (items 3, 0, 2, 1, 4): 7 opens a bin with 3 free and 5 one with 5 free; 4
    fits the second only (1 free); 3 fits the first only (0 free); 2 opens a third.
    """
    assert best_fit_decreasing([5, 3, 4, 7, 2], 10) == [[3, 1], [0, 2], [4]]


def test_a_packed_row_numbers_its_documents_and_keeps_their_masks():
    packed = pack_columns({"input_ids": [[1, 2], [3, 4, 5]], "loss_mask": [[0, 1], [0, 1, 1]]}, max_length=6)
    assert packed == {"input_ids": [[3, 4, 5, 1, 2]], "loss_mask": [[0, 1, 1, 0, 1]], "documents": [[1, 1, 1, 2, 2]]}


def test_a_document_that_is_longer_than_a_row_is_cut():
    packed = pack_columns({"input_ids": [[1, 2, 3, 4]], "loss_mask": [[0, 1, 1, 1]]}, max_length=3)
    assert packed == {"input_ids": [[1, 2, 3]], "loss_mask": [[0, 1, 1]], "documents": [[1, 1, 1]]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_packing_keeps_every_document_once_and_wastes_less_than_half(lengths):
    rows = [[number] * length for number, length in enumerate(lengths)]
    packed = pack_columns({"input_ids": rows, "loss_mask": rows}, max_length=12)
    assert all(len(row) <= 12 for row in packed["input_ids"])
    documents = [
        [token for token, number in zip(ids, numbers, strict=True) if number == wanted]
        for ids, numbers in zip(packed["input_ids"], packed["documents"], strict=True)
        for wanted in range(1, max(numbers) + 1)
    ]
    assert sorted(documents) == sorted(rows)
    # Two rows that are both at most half full would have been one.
    assert sum(len(row) <= 6 for row in packed["input_ids"]) <= 1
