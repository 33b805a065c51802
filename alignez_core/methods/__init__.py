"""The methods by name; each implements the port `base.Method`."""

from __future__ import annotations

from alignez_core.methods.alignez import AlignEZ
from alignez_core.methods.base import Method
from alignez_core.methods.caa import CAA
from alignez_core.methods.distill import Distill
from alignez_core.methods.prompt import PromptMethod, Urial
from alignez_core.methods.transport import TransportMethod
from alignez_core.spec.limits import MethodName


def method_of(name: MethodName) -> Method:
    """The method of a name. `auto` is `distill` over its grid; the fit compares the result with the prompt."""
    methods: dict[MethodName, Method] = {
        "auto": Distill("auto"),
        "distill": Distill(),
        "alignez": AlignEZ(),
        "caa": CAA(),
        "transport": TransportMethod(),
        "prompt": PromptMethod(),
        "urial": Urial(),
    }
    return methods[name]
