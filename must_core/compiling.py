"""Whether torch.compile can work here."""

from collections.abc import Mapping
from typing import Any

from must_core.errors import InvalidConfig


def require_compiler(requested: Mapping[str, Any], device: str) -> None:
    """Raise `InvalidConfig` where torch.compile would find, minutes later, no compiler for the CPU."""
    if requested.get("compiled") is not True or device != "cpu":
        return
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415 - takes seconds to load

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as e:
        raise InvalidConfig(
            "On a CPU, compiled=true needs a C++ compiler: install g++, or name another one in CXX, or leave it out.",
            param="compiled",
        ) from e
