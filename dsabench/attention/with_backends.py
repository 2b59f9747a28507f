"""The base of attentions that masks or kernels compute, whichever suits the sizes and the device."""

from __future__ import annotations

import abc

import torch

from dsabench.attention.base import Attention
from dsabench.attention.dsa import backends
from dsabench.ops import runs_on
from dsabench.spec.attention import AttentionSpec
from dsabench.spec.run import RunSpec


class AttentionWithBackends(Attention):
    """An attention whose spec names a backend in its field `backend_field`; `auto` leaves the choice to `backend`."""

    def __init__(self, spec: RunSpec, layer: int) -> None:
        super().__init__(spec, layer)
        self.backend(spec, None)  # refuses sizes that the kernels do not take, on every machine

    @classmethod
    @abc.abstractmethod
    def backend(cls, spec: RunSpec, no_kernels: str | None) -> backends.Backend:
        """The backend of this spec, as backends.choose says it. no_kernels: why Triton kernels do not run where the
        tensors are, None when they do. Raises SpecError where `triton` is asked for and does not run."""

    @classmethod
    def resolve(cls, spec: RunSpec, no_kernels: str | None) -> AttentionSpec:
        """As Attention.resolve: the backend, where it is `auto`."""
        field = spec.attention.backend_field
        assert field is not None
        return spec.attention.model_copy(update={field: cls.backend(spec, no_kernels)})

    def backend_on(self, device: torch.device) -> backends.Backend:
        """The backend on this device. It is chosen for the run's length, so that shorter windows use the same one.
        Raises SpecError where `triton` is asked for and does not run."""
        return self.backend(self.spec, None if runs_on(device) else backends.ELSEWHERE)

    def streams(self, device: torch.device) -> bool:
        """Whether the kernels compute on this device; as `backend_on`."""
        return self.backend_on(device) == "triton"
