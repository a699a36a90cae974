"""The house's rules that no linter knows: sizes, dead modules, where tests stand, words."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedsys", "server", "client", "secure_agg", "simulations")

MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 500, 100, 10

LONG_MODULES = {
    "simulations/deterministic/world.py": "one world: processes, deaths and restarts",
    "tests/adversary/test_dealers.py": "one attack after the other, each with its check removed",
    "tests/adversary/test_rounds.py": "one attack after the other, each with its check removed",
    "tests/client/test_session.py": "every message of a session in every state",
    "tests/client/training/example/test_privacy.py": "DP-SGD against a reference, step by step",
    "tests/fedsys/privacy/accounting/test_accountant.py": "with a second, naive accountant",
    "tests/fedsys/report/test_html.py": "a page for every kind of run",
    "tests/simulations/buffered/test_rounds.py": "accounting and protocol of buffers in one place",
}
LONG_FUNCTIONS = {
    "fedsys/cli/simulate.py:simulate": "its parameters are the command's options, with their help",
    "fedsys/cli/tune.py:tune": "its parameters are the command's options, with their help",
    "tests/fedsys/report/conftest.py:audit": "the claims of a run, written out",
    "tests/simulations/test_random_jobs.py:draw": "draws every key of a configuration",
}
MANY_PARAMETERS = {
    "client/training/graph/path.py:__init__": "buffers of one recorded epoch, made together",
    "fedsys/cli/privacy.py:_job": "the command's options",
    "fedsys/cli/privacy_plan.py:plan": "the command's options",
    "fedsys/cli/simulate.py:simulate": "the command's options",
    "fedsys/cli/tune.py:tune": "the command's options",
    "server/summary.py:_content": "the fields of summary.json, from two sources",
}
ENTRY_POINTS = re.compile(
    r"fedsys\.__main__|fedsys\.cli\.\w+|client\.flower_host|examples\.\w+"
    r"|simulations\.benchmarks\.[\w.]+|simulations\.(testbed|deterministic)\.__main__"
)
"""Modules that people, `fedsys.cli.app` (by name) or another program start."""

ABOUT_BEHAVIOUR = {
    "tests/adversary": "attacks on secure_agg, by who attacks",
    "tests/device": "a device in another language, written from DEVICE.md",
    "tests/e2e": "whole commands in processes of their own",
    "tests/examples": "the examples as a reader runs them",
    "tests/flower": "the contract with Flower, for both hosts",
    "tests/test_documents.py": "the documents and the site",
    "tests/verifier": "a verifier written from LEDGER.md alone, and formats against their schemas",
    "tests/test_tidy.py": "the whole house",
    "tests/client/test_malicious_coordinator.py": "attacks through whole sessions",
    "tests/fedsys/queries/test_coverage.py": "the intervals of every question, in many rounds",
    "tests/fedsys/queries/test_opendp.py": "every question against an oracle",
    "tests/client/test_session_fuzzing.py": "mutated messages to a session",
    "tests/client/training/test_paths.py": "one contract for every path of local training",
    "tests/client/training/test_random_models.py": "random models over every path",
    "tests/fedsys/audit/test_command.py": "the audit as a command, over the folders made here",
    "tests/fedsys/audit/test_hostile_folder.py": "folders that somebody hostile made",
    "tests/simulations/test_hostile_folders.py": "folders that somebody hostile made, run here",
    "tests/fedsys/audit/test_mutations.py": "every single change of a run's folder",
    "tests/fedsys/audit/test_planted.py": "canaries, from planting to the verdict",
    "tests/fedsys/audit/test_tampering.py": "every edit of a run that the audit must notice",
    "tests/fedsys/audit/test_truncation.py": "a finished run cut to a cheaper one",
    "tests/fedsys/cli/test_deployment_bad_input.py": "mistakes of operators and owners",
    "tests/fedsys/cli/test_hostile_paths.py": "hostile files and folders in place of every path",
    "tests/fedsys/cli/test_hostile_text.py": "control characters in everything that is printed",
    "tests/fedsys/cli/test_imports.py": "what each command imports",
    "tests/fedsys/graphs/test_mutants.py": "mutated graphs: no crash, no file, no socket",
    "tests/fedsys/privacy/accounting/test_accountants_agree.py": "accountants against libraries",
    "tests/fedsys/privacy/accounting/test_amplification.py": "amplification against published",
    "tests/fedsys/privacy/ledger/test_crashes.py": "kill at every write",
    "tests/fedsys/privacy/ledger/test_length.py": "very long ledgers",
    "tests/fedsys/privacy/ledger/test_schema.py": "what LEDGER.md says",
    "tests/fedsys/privacy/mechanisms/test_mechanisms.py": "one contract for every mechanism",
    "tests/fedsys/privacy/noise/test_sums.py": "sums of many noises",
    "tests/fedsys/privacy/test_doctests.py": "the examples in docstrings",
    "tests/fedsys/privacy/test_interfaces.py": "what the layer may import",
    "tests/fedsys/privacy/test_names.py": "names that are loaded on use",
    "tests/fedsys/privacy/test_vectors.py": "golden vectors",
    "tests/fedsys/test_locks.py": "the locks of dependencies",
    "tests/fedsys/test_package.py": "the package as a whole",
    "tests/fedsys/test_secrets_in_repr.py": "no secret in any repr",
    "tests/fedsys/transparency/test_doctests.py": "the examples in docstrings",
    "tests/fedsys/transparency/test_formats.py": "notes, keys, heads and proofs against C2SP",
    "tests/secure_agg/test_durability.py": "state over crashes",
    "tests/secure_agg/test_fuzzing.py": "mutated messages of every type",
    "tests/secure_agg/test_golden.py": "golden vectors",
    "tests/secure_agg/test_package.py": "the package as a whole",
    "tests/secure_agg/test_sums.py": "whole rounds through the specification",
    "tests/server/home/test_folder_templates.py": "the units and container that ship",
    "tests/server/test_banded_job.py": "a job under correlated noise",
    "tests/server/test_stopping.py": "stopping a coordinator at any moment",
    "tests/simulations/deterministic/test_founding.py": "how an epoch of agents is founded",
    "tests/simulations/deterministic/test_mutants.py": "faults put into the code on purpose",
    "tests/simulations/deterministic/test_schedules.py": "many schedules of one world",
    "tests/simulations/deterministic/test_two_crashes.py": "every pair of crashes",
    "tests/simulations/test_adaptive_clipping.py": "adaptive clipping in whole jobs",
    "tests/simulations/test_not_finite.py": "updates that are not finite, in whole jobs",
    "tests/simulations/test_power_loss.py": "power loss at every write",
    "tests/simulations/test_protocols.py": "float, ideal and secure against one another",
    "tests/simulations/test_random_jobs.py": "random configurations, end to end",
    "tests/simulations/test_scale.py": "large populations",
    "tests/simulations/test_shared_work.py": "work that virtual clients share",
    "tests/simulations/testbed/test_testbed.py": "the testbed as a whole",
}
"""Tests that no single module owns: a file or a folder, and what it is about."""


@functools.cache
@functools.cache
def sources() -> dict[str, str]:
    """Every Python file that git tracks or would, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:  # an export without git
        names = [
            path.relative_to(ROOT).as_posix()
            for folder in (*PACKAGES, "tests", "examples")
            for path in (ROOT / folder).rglob("*.py")
        ]
    else:
        names = listed.stdout.split()
    return {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in sorted(names)
        if (ROOT / name).is_file() and not name.endswith("_pb2.py")
    }


@functools.cache
def parsed(name: str) -> ast.Module:
    return ast.parse(sources()[name])


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name in sources():
        for node in ast.walk(parsed(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node


def module_of(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def test_no_module_is_long() -> None:
    found = {name for name, text in sources().items() if text.count("\n") > MOST_LINES}
    assert found == set(LONG_MODULES)


def test_no_function_is_long() -> None:
    found = {
        name
        for name, node in functions()
        if (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    }
    assert found == set(LONG_FUNCTIONS)


def test_no_function_takes_many_parameters() -> None:
    found = {
        name
        for name, node in functions()
        if len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > MOST_PARAMETERS
    }
    assert found == set(MANY_PARAMETERS)


def test_every_module_is_used_by_another_or_started() -> None:
    product = {name: text for name, text in sources().items() if not name.startswith("tests/")}
    named: dict[str, set[str]] = {}  # dotted name -> files that mention it
    for name, text in product.items():
        for dotted in set(re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", text)):
            named.setdefault(dotted, set()).add(name)
        for node in ast.walk(parsed(name)):
            if isinstance(node, ast.ImportFrom):
                for each in node.names:
                    named.setdefault(f"{node.module}.{each.name}", set()).add(name)
    dead = [
        name
        for name in product
        if name.split("/")[0] in PACKAGES
        and "/" in name
        and not name.endswith("__init__.py")
        and not ENTRY_POINTS.fullmatch(module_of(name))
        and not named.get(module_of(name), set()) - {name}
    ]
    assert dead == []


def test_tests_stand_where_the_module_stands() -> None:
    astray = []
    for name in sources():
        if not re.fullmatch(r"tests/(.*/)?test_\w+\.py", name):
            continue
        path = Path(name)
        mirrored = path.relative_to("tests").with_name(path.name.removeprefix("test_"))
        is_there = (ROOT / mirrored).is_file() or (ROOT / mirrored.with_suffix("")).is_dir()
        about = [each for each in ABOUT_BEHAVIOUR if name == each or name.startswith(f"{each}/")]
        if is_there == bool(about):
            astray.append(name)
    assert astray == []


@pytest.mark.parametrize("name", [*ABOUT_BEHAVIOUR, *LONG_MODULES])
def test_what_is_excepted_exists(name: str) -> None:
    assert (ROOT / name).exists()


def test_nothing_is_left_to_do() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    found = {name for name, text in sources().items() if mark.search(text)}
    assert found == {"tests/test_documents.py"}, "which looks for them in documents"


def test_no_forbidden_word_is_used() -> None:
    """The glossary's list, in every module and document; names in code included."""
    rows = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    assert words
    mark = re.compile(r"\b(" + "|".join(words) + r")\b", re.IGNORECASE)
    texts = dict(sources())
    for folder in (*PACKAGES, "docs", "examples", "."):
        pattern = "*.md" if folder == "." else "**/*.md"
        for path in (ROOT / folder).glob(pattern):
            texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    lists = {"docs/glossary.md", "tests/test_documents.py"}
    found = {name for name, text in texts.items() if name not in lists and mark.search(text)}
    assert found == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, those for type checkers alone do not."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports = {each: graph.find_modules_directly_imported_by(each) for each in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises a CycleError that names a circle
