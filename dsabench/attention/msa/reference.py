"""The specification of MSA's selection: scores of tokens, their largest in each block, the best blocks.

    s[t,g,j] = qI[t,g] . kI[j]        M[t,g,b] = max of s over the tokens j <= t of block b        B[t,g] = top-k of M

Groups lie with the batch: N = B G rows, g the inner one. Blocks begin at multiples of their size in the window, as in
`transformers`; of a packed document the first block may be short. (MSA's training code begins them with each document.)

Legend: N rows, T query, S key, I index width, C blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsabench.attention.dsa import masked


def token_scores(q_NTI: Tensor, k_NSI: Tensor) -> Tensor:
    """(N, T, S), fp32 (fp64 for fp64 inputs), neither scaled nor masked."""
    return (q_NTI @ k_NSI.transpose(-1, -2)).to(torch.promote_types(q_NTI.dtype, torch.float32))


def block_scores(scores_NTS: Tensor, allowed: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, T, C) the largest score of the keys of each block that a query may see, and whether it may see any."""
    padding = -scores_NTS.shape[-1] % size
    best_NTC = F.pad(scores_NTS.masked_fill(~allowed, -torch.inf), (0, padding), value=-torch.inf)
    any_TC = F.pad(allowed, (0, padding)).unflatten(-1, (-1, size)).any(-1)
    return best_NTC.unflatten(-1, (-1, size)).amax(-1), any_TC.expand(len(scores_NTS), -1, -1)


def kept_blocks(best_NTC: Tensor, seen_NTC: Tensor, first_query: int, size: int, kept: int, local: int) -> Tensor:
    """(N, T, C) whether a block is one of the `kept` that score highest, of equal ones the first. The query's own block
    and the local - 1 before it score above all. T are queries from first_query on."""
    own_T1 = (torch.arange(best_NTC.shape[1], device=best_NTC.device) + first_query)[:, None] // size
    block_C = torch.arange(best_NTC.shape[2], device=best_NTC.device)
    near_TC = (block_C <= own_T1) & (block_C > own_T1 - local)
    return masked.selection_mask(best_NTC.masked_fill(near_TC, torch.inf), seen_NTC, kept)


def keys_of(blocks_NTC: Tensor, allowed: Tensor, size: int) -> Tensor:
    """(N, T, S) the keys of these blocks that a query may see."""
    return blocks_NTC.repeat_interleave(size, dim=-1)[..., : allowed.shape[-1]] & allowed
