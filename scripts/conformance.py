"""Writes the tables of docs/conformance.md from the output of `cargo test`: one row a case, one column a store or bus."""

import re
import sys

TITLES = {"stores": "Task stores", "keys": "Stores of idempotency keys", "buses": "Buses"}
RESULT = re.compile(r"^test (\w+)::(\w+)::(\w+) \.\.\. (ok|FAILED|ignored)")
# The engines are tested by a program of their own, which has buses alone.
ENGINE = re.compile(r"^test (?:on_)?(\w+)::(case_\w+) \.\.\. (ok|FAILED|ignored)")


def read(path):
    """The results by suite, then by case, then by subject."""
    suites = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if found := RESULT.match(line):
                suite, subject, case, result = found.groups()
                suites.setdefault(suite, {}).setdefault(case, {})[subject] = result
            elif found := ENGINE.match(line):
                subject, case, result = found.groups()
                suites.setdefault("buses", {}).setdefault(case, {})[subject] = result
    return suites


def table(cases):
    subjects = sorted({subject for results in cases.values() for subject in results})
    yield "| case | " + " | ".join(subject.replace("_", " ") for subject in subjects) + " |"
    yield "|---|" + "---|" * len(subjects)
    for case in sorted(cases):
        results = (cases[case].get(subject, "") for subject in subjects)
        yield f"| {case.replace('_', ' ')} | " + " | ".join(results) + " |"


def main():
    print("# Results of the suites\n")
    print("`scripts/conformance.sh` writes this page. A case that needs a broker, or a capability, asserts that a bus without one")
    print("says so. Case 13, that settling twice does not compile, is a doc test of `Delivery`.")
    for suite, cases in sorted(read(sys.argv[1]).items()):
        print(f"\n## {TITLES.get(suite, suite)}\n")
        print("\n".join(table(cases)))


main()
