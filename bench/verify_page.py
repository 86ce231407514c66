"""Writes the generated parts of docs/verify.md: from the judge's tables, and from its verdicts."""

from __future__ import annotations

import json
import re
from typing import Any

from page_text import RESULTS, is_check, require_current

from tessera.tools.judge.faults import CALLING_RULES
from tessera.tools.judge.forms import FORMS

VERDICTS = RESULTS / "verify"
PAGE = RESULTS.parent.parent / "docs" / "verify.md"

# A literal of ids that is longer is not shown.
_SHOWN_IDS = 60
# Cases of a table that are shown by name.
_SHOWN_CASES = 6


def page(text: str) -> str:
    """The page with each part between `<!-- generated: NAME -->` and `<!-- end -->` made anew."""
    parts = {"forms": forms, "rules": calling_rules, "verdicts": verdicts, "ops": verdicts_on_ops}
    for name, make in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
        made = make()
        text, replaced = pattern.subn(lambda match, made=made: f"{match[1]}{made}{match[2]}", text)
        assert replaced == 1, name
    return text


def forms() -> str:
    """The known signatures."""
    lines = ["| form | signature | default arrays |", "|---|---|---|"]
    for form in FORMS.values():
        lines.append(f"| `{form.name}` | `{form.signature}` | {form.arrays} |")
    return "\n".join(lines) + "\n"


def calling_rules() -> str:
    """The rules of calling, which the checker does not know."""
    lines = ["| rule | meaning |", "|---|---|"]
    lines += [f"| `{rule.name}` | {rule.meaning} |" for rule in CALLING_RULES]
    return "\n".join(lines) + "\n"


def verdicts() -> str:
    """The rules that each implementation breaks, with the smallest call for each rule."""
    documents = [one for one in _documents() if "op" not in one["verdict"]]
    documents.sort(key=lambda one: (one["device"] == "cuda", one["name"] != "Tessera", one["name"]))
    lines = [
        "| implementation | version | device | calls | broken | broken only with invalid ids "
        "| programs that show it |",
        "|---|---|---|---:|---|---|---|",
    ]
    lines += [_row(one) for one in documents]
    for one in documents:
        if one["verdict"]["findings"]:
            lines += ["", f"### {_title(one)}", "", *_details(one)]
    return "\n".join([*lines, *_origins(documents)]) + "\n"


def verdicts_on_ops() -> str:
    """The rules that implementations of other ops break, with cases that do."""
    documents = [one for one in _documents() if "op" in one["verdict"]]
    documents.sort(key=lambda one: (one["verdict"]["op"], one["name"]))
    lines = ["| op | implementation | version | cases | broken |", "|---|---|---|---:|---|"]
    for one in documents:
        verdict = one["verdict"]
        rules = dict.fromkeys(each["rule"] for each in verdict["findings"])
        lines.append(
            f"| `{verdict['op']}` | {one['name']} | {one['version']} | {verdict['num_calls']} of "
            f"{verdict['num_cases']} | {', '.join(f'`{rule}`' for rule in rules) or 'nothing'} |"
        )
    for one in documents:
        if one["verdict"]["findings"]:
            lines += ["", f"### {_title(one)}", ""]
            lines += [_finding_of_op(each) for each in one["verdict"]["findings"]]
    return "\n".join([*lines, *_origins(documents)]) + "\n"


def _finding_of_op(finding: dict[str, Any]) -> str:
    """A rule, what the smallest call breaks, and some of the table's cases that break it."""
    named = [name for name in finding["cases"] if not name.startswith("random:")]
    shown = ", ".join(f"`{name}`" for name in named[:_SHOWN_CASES])
    shown += f" and {len(named) - _SHOWN_CASES} more" if len(named) > _SHOWN_CASES else ""
    message = finding["message"].removeprefix(f"{finding['rule']}: ").removesuffix(".")
    cases = f", in the table {shown}" if named else ""
    return f"- `{finding['rule']}`: {message}. {_counted(finding['num_calls'], 'case')}{cases}."


def _documents() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(VERDICTS.glob("*.json"))]


def _origins(documents: list[dict[str, Any]]) -> list[str]:
    origins = dict.fromkeys(_origin(one) for one in documents)
    return ["", "Judged on:", "", *(f"- {origin}" for origin in origins)]


def _title(one: dict[str, Any]) -> str:
    version = f", {one['version']}" if one["version"] else ""
    return f"{one['name']}{version}, on {one['device']}"


def _row(one: dict[str, Any]) -> str:
    verdict = one["verdict"]
    found = verdict["findings"]
    always = {each["rule"]: None for each in found if each["valid_ids"]}
    others = {each["rule"]: None for each in found if each["rule"] not in always}
    cells = [
        one["name"],
        one["version"] or "–",
        one["device"],
        f"{verdict['num_calls']} of {verdict['num_cases']}",
        *(", ".join(f"`{rule}`" for rule in rules) or "nothing" for rules in (always, others)),
        _shown(found),
    ]
    return f"| {' | '.join(cells)} |"


def _shown(findings: list[dict[str, Any]]) -> str:
    """How many of the snippets were seen to show their finding in a new interpreter."""
    if not findings:
        return "–"
    # Verdicts of earlier builds do not record it.
    if not all("shown" in each for each in findings):
        return "not recorded"
    return f"{sum(each['shown'] is True for each in findings)} of {len(findings)}"


def _details(one: dict[str, Any]) -> list[str]:
    lines = []
    for each in one["verdict"]["findings"]:
        call = each["call"]
        ids = call["num_tokens"] * call["top_k"]
        options = f", with {', '.join(call['options'])}" if call["options"] else ""
        dtype = "" if call["dtype"] == "int32" else f"{call['dtype']} "
        kind = f" ({each['kind']})" if each["kind"] else ""
        shown = each["message"].removeprefix(f"{each['rule']}: ").removesuffix(".")
        number, smallest = each.get("num_program_calls", 1), "Smallest call"
        if number > 1 and not each["alone"]:
            smallest = f"Smallest program: {number} calls, the last one of"
        elif not each["alone"]:
            shown += ", which an earlier call of the same process has caused"
        if each.get("shown") is False:
            shown += ", which its program does not show in a new process"
        smallest += ":" if smallest == "Smallest call" else ""
        lines.append(
            f"- `{each['rule']}`{kind}: {shown}. {smallest} {_counted(ids, f'{dtype}id')}"
            f"{_ids(each['snippet'])}, {_counted(call['num_experts'], 'expert')}, "
            f"blocks of {call['block_size']}{options}."
        )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _ids(snippet: str) -> str:
    """The ids of the call, if they are few."""
    literals = re.findall(r"^topk_ids = .*?np\.array\((\[.*\]), ", snippet, re.MULTILINE)
    return f" `{literals[-1]}`" if literals and len(literals[-1]) <= _SHOWN_IDS else ""


def _origin(one: dict[str, Any]) -> str:
    place = f"{one['gpu']}, torch {one['torch']}" if "gpu" in one else one["machine"]
    verdict = one["verdict"]
    return (
        f"{place}; Tessera {verdict['tessera']}, seed {verdict['seed']}, "
        f"{verdict['seconds']:.0f} s each; {one['date']}"
    )


def main() -> None:
    """Write or check the page."""
    is_checked = is_check(__doc__)
    text = PAGE.read_text()
    made = page(text)
    if is_checked:
        require_current(made == text, PAGE)
    else:
        PAGE.write_text(made)


if __name__ == "__main__":
    main()
