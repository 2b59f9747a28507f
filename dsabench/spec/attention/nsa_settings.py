"""Settings of native sparse attention."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.attention.attention_spec import AttentionSpec


class NSASpec(AttentionSpec):
    """Settings of native sparse attention (NSA); the defaults are the paper's."""

    kind: Literal["nsa"] = "nsa"
    """The variant's name."""

    backend_field: ClassVar[str] = "selection_backend"

    selection_backend: Literal["auto", "masked", "triton"] = "auto"
    """How it is computed; results differ by rounding alone. `masked` masks dense products; `triton` (a CUDA GPU) gives
    index lists to the sparse kernels and takes the compressed branch by slabs, without any L x L tensor. `auto` takes
    `triton` on a GPU from 1024 tokens on where at least 8 query heads share a KV head (model.n_kv_heads), else from
    8192 tokens on; `masked` elsewhere."""

    compression_block: Annotated[int, Field(ge=1, le=4096)] = 32
    """Tokens l of a compressed block, which one key and one value stand for. No longer than the window."""

    compression_stride: Annotated[int, Field(ge=1, le=4096)] = 16
    """Tokens d from the beginning of a compressed block to that of the next; divides both block sizes."""

    selection_block: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens l' of a block that is selected whole; at least compression_block."""

    selected_blocks: Annotated[int, Field(ge=1, le=4096)] = 16
    """Blocks n that a query selects, the initial and the local ones among them."""

    initial_blocks: Annotated[int, Field(ge=0)] = 1
    """First blocks that every query selects."""

    local_blocks: Annotated[int, Field(ge=1)] = 2
    """Last blocks that every query selects, its own among them."""

    window: Annotated[int, Field(ge=2)] = 512
    """Tokens w of the sliding window, the query's own among them. Of one token its keys could learn nothing."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        l, d, large = self.compression_block, self.compression_stride, self.selection_block  # noqa: E741
        if l % d or large % d or l > large:
            raise ValueError(
                f"compression_stride = {d} must divide compression_block = {l} and selection_block = {large}, and "
                "compression_block must not be larger than selection_block; the paper has 16, 32 and 64"
            )
        if self.initial_blocks + self.local_blocks > self.selected_blocks:
            raise ValueError(
                f"selected_blocks = {self.selected_blocks} holds neither initial_blocks = {self.initial_blocks} nor "
                f"local_blocks = {self.local_blocks} besides; the paper has 16, 1 and 2"
            )
        return self

    def n_selected(self, length: int) -> int:
        """Tokens of the selected blocks."""
        return self.selected_blocks * self.selection_block

    def selects_everything(self, length: int) -> bool:
        """Whether a query selects every block."""
        return self.n_selected(length) >= length

    def selected_between(self, query: int, length: int) -> tuple[int, int]:
        """Least: one KV head's blocks, its own as far as the query. Most: another selection for each KV head."""
        before, own = divmod(query, self.selection_block)
        return min(before, self.selected_blocks - 1) * self.selection_block + own + 1, query + 1

    def keys_read(self, length: int) -> int:
        """Compressed entries, tokens of the selected blocks, and the window, of the last query."""
        entries = max(0, (length - self.compression_block) // self.compression_stride + 1)
        return entries + self.selected_between(length - 1, length)[0] + min(self.window, length)
