"""Kernels compiled ahead: which ones planned runs will launch, and processes that compile them meanwhile."""

from dsabench.compilation.ahead import NOTHING as NOTHING
from dsabench.compilation.ahead import Kernels as Kernels
from dsabench.compilation.ahead import compiling as compiling
