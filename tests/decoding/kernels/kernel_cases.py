"""Trees and devices that the kernels are tested with."""

import torch

from transformers_griffin.decoding.draft_tree import DraftTree, ancestor_mask


# On a CPU the kernels run in Triton's interpreter, see the root's conftest.py.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_tree(batch_size: int, n_nodes: int, seed: int = 0, vocab_size: int = 50) -> DraftTree:
    """Trees of all forms, from bushes to near-chains; siblings carry different tokens."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(n_nodes)
    reach = torch.randint(1, 6, (batch_size, n_nodes), generator=generator)  # parents are near: deep trees
    parents = (index - reach).clamp(min=0)
    ancestors = ancestor_mask(parents, n_nodes)
    # Token = number among the siblings, shifted: different among siblings, equal now and then elsewhere.
    same_parent = (parents.unsqueeze(-1) == parents.unsqueeze(1)).tril(-1)
    tokens = (same_parent.sum(dim=-1) + parents) % vocab_size
    return DraftTree(
        tokens=tokens.to(DEVICE),
        parents=parents.to(DEVICE),
        depths=(ancestors.sum(dim=-1) - 1).to(DEVICE),
        ancestors=ancestors.to(DEVICE),
        scores=torch.zeros(batch_size, n_nodes, device=DEVICE),
    )


def chain(n_nodes: int) -> DraftTree:
    """root -- 1 -- 2 -- ..."""
    parents = (torch.arange(n_nodes) - 1).clamp(min=0).unsqueeze(0).to(DEVICE)
    ancestors = ancestor_mask(parents, n_nodes)
    return DraftTree(parents + 1, parents, ancestors.sum(dim=-1) - 1, ancestors, torch.zeros(parents.shape))
