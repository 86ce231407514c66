"""The known signatures of the op, their detection, and the arguments of a call in each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tessera.tools.judge.call import DEFAULTS, OPTIONS, Call

Arrays = Literal["numpy", "torch"]

_OUTPUTS = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")
REPORTS = ("expert_counts", "num_dropped", "statistics")


@dataclass(frozen=True)
class Form:
    """A signature of the op.

    positional: arguments passed by position, with their names in `Call`.
    keywords: arguments always passed by name.
    optional: arguments passed by name if a call needs them and the function takes them.
    arrays: the default framework of the function's arrays.
    in_place: the outputs are arguments, and nothing is returned.
    filtered: pairs with id -1 are a group of their own, in every call.
    map_is_local: with a map, pairs of remote experts are left out, in every call.
    """

    name: str
    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    arrays: Arrays = "torch"
    in_place: bool = False
    filtered: bool = False
    map_is_local: bool = False

    @property
    def signature(self) -> str:
        """The signature as text."""
        optional = [f"{name}=..." for name in self.optional]
        star = ["*"] if self.keywords else []
        return f"({', '.join([*self.positional, *star, *self.keywords, *optional])})"


FORMS = {
    form.name: form
    for form in (
        Form(
            "tessera",
            ("topk_ids",),
            ("block_size", "num_experts"),
            (
                "expert_map",
                "ignore_invalid_experts",
                "pad_sorted_ids",
                "tail_expert",
                "map_tail",
                "filtered_group",
                *REPORTS,
                "out",
            ),
            arrays="numpy",
        ),
        Form(
            "vllm",
            ("topk_ids", "block_size", "num_experts"),
            optional=("expert_map", "pad_sorted_ids", "ignore_invalid_experts"),
        ),
        Form(
            "vllm-op",
            ("topk_ids", "num_experts", "block_size", *_OUTPUTS),
            optional=("expert_map",),
            in_place=True,
            map_is_local=True,
        ),
        Form("sglang", ("topk_ids", "block_size", "num_experts"), filtered=True),
        Form(
            "sglang-op",
            ("topk_ids", "num_buckets", "block_size", *_OUTPUTS, "cumsum_buffer", "pad_all"),
            in_place=True,
            filtered=True,
        ),
        Form("script", ("topk_ids", "num_experts", "block_size", "topk"), arrays="numpy"),
    )
}


def listed_forms() -> str:
    """All forms with their signatures, for messages."""
    return "; ".join(f"{form.name} {form.signature}" for form in FORMS.values())


class Judged(NamedTuple):
    """An implementation's form, and the optional arguments of the form that it takes."""

    form: Form
    accepted: frozenset[str]


def judged_as(function: Callable[..., Any], wanted: str | None) -> Judged:
    """Detect the form of a function, or use the wanted one.

    Raises:
        ValueError: the form is unknown, or cannot be detected from the function's parameters.
    """
    if wanted is not None and wanted not in FORMS:
        raise ValueError(f"--form: expected one of {', '.join(FORMS)}, got {wanted}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # compiled functions may have no signature
        parameters = []
    named = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    form = FORMS.get(wanted or _detected(named, positional))
    if form is None:
        raise ValueError(
            f"--form: cannot be detected from the parameters ({', '.join(named)}); "
            f"expected one of {listed_forms()}; --op names the op of a function that does not align"
        )
    takes_all = not parameters or len(named) < len(parameters)
    return Judged(form, frozenset(form.optional if takes_all else {*form.optional} & {*named}))


def _detected(named: list[str], positional: list[str]) -> str:
    """The name of the form with these parameters; empty if it cannot be detected."""
    sizes = [name for name in named if name in ("block_size", "num_experts")]
    if "cumsum_buffer" in named:
        return "sglang-op"
    if sizes == ["num_experts", "block_size"] and positional[1:3] == sizes:
        if "sorted_token_ids" in named or "sorted_ids" in named:
            return "vllm-op"
        return "script" if {"topk", "top_k"} & {*named} else ""
    if len(sizes) != 2:
        return ""
    by_name = "block_size" not in positional or "num_experts" not in positional
    if by_name or {"out", "tail_expert", "filtered_group"} & {*named}:
        return "tessera"
    if positional[1:3] != sizes:
        return ""
    return "sglang" if "ignore_invalid_expert" in named else "vllm"


def adapted(judged: Judged, call: Call) -> tuple[Call, list[str]]:
    """The nearest call that an implementation supports, and the options that it lacks."""
    form, accepted = judged
    takes = {name for name in OPTIONS if name in accepted}
    if {*REPORTS} <= accepted:
        takes.add("reports")
    if form.in_place or "out" in accepted:
        takes.add("extra_length")
    if form.map_is_local:
        takes.add("ignore_invalid_experts")
    lacking = [name for name in call.changed_options() if name not in takes]
    if form.map_is_local and not call.ignore_invalid_experts and call.expert_map is not None:
        lacking.append("expert_map")
    if form.filtered and "filtered_group" in lacking:
        lacking.remove("filtered_group")
    call = replace(call, **{name: DEFAULTS[name] for name in lacking})
    if form.map_is_local and call.expert_map is None:
        call = replace(call, ignore_invalid_experts=False)
    if form.filtered:
        call = replace(call, filtered_group=True)
    return call, lacking


class Arguments(NamedTuple):
    """The arguments that a call passes.

    positional, keywords: the names of arguments passed by position, and by keyword.
    values: the arguments that are not arrays.
    buffers: the lengths of the int32 output arrays that are passed.
    output_lengths: the contract's lengths of the outputs, passed or not.
    """

    positional: list[str]
    keywords: list[str]
    values: dict[str, Any]
    buffers: dict[str, int]
    output_lengths: dict[str, int]


def arguments_of(judged: Judged, call: Call) -> Arguments:
    """The arguments that an `adapted` call passes to the implementation."""
    form, accepted = judged
    keywords = [name for name in call.changed_options() if name in accepted]
    keywords += [name for name in REPORTS if call.reports]
    lengths = call.output_lengths()
    buffers = lengths if form.in_place else {}
    if call.extra_length and not form.in_place:
        keywords.append("out")
        buffers = lengths
    if "cumsum_buffer" in form.positional:
        buffers = buffers | {"cumsum_buffer": call.num_experts + 2}
    values = {
        "block_size": call.block_size,
        "num_experts": call.num_experts,
        "num_buckets": call.num_experts + 1,
        "topk": int(call.topk_ids.shape[-1]),
        "pad_all": True,
        **{name: getattr(call, name) for name in OPTIONS if name != "expert_map"},
    }
    return Arguments(list(form.positional), [*form.keywords, *keywords], values, buffers, lengths)
