"""Writes the tables of docs/conformance.md from the output of `cargo test`: one row a case, one column a store or bus."""

import re
import sys

TITLES = {
    "stores": "Task stores",
    "keys": "Stores of idempotency keys",
    "buses": "Buses",
    "outbox": "Outbox",
    "inbox": "Inbox",
    "audit": "Audit log",
    "brains": "Brains over a database",
    "retention": "Retention",
}
# What the modules of the tests are.
SUBJECTS = {
    "paused": "memory",
    "threads": "memory, real time",
    "memory": "memory",
    "memory_durable": "memory durable",
    "plain": "without capabilities",
    "sqlite": "SQLite",
    "on_postgres": "Postgres",
    "on_redis": "Redis",
    "on_redis_streams": "Redis streams",
}
BINARY = re.compile(r"Running (?:unittests|tests)[ /](\w+)")
RESULT = re.compile(r"^test ([\w:]+) \.\.\. (ok|FAILED|ignored)")


def place(binary, path):
    """The suite, the subject and the case of a test; `None` where it is of no suite."""
    names = path.split("::")
    if binary == "conformance" and len(names) == 3:
        suite, subject, case = names
    elif binary == "bus" and len(names) == 2:
        suite, (subject, case) = "buses", names
    elif binary == "sql" and len(names) == 2 and names[0] in SUBJECTS:
        suite, (subject, case) = "stores", names
    elif binary == "sql" and len(names) == 3 and names[1] == "keys":
        suite, subject, case = "keys", names[0], names[2]
    elif binary in ("sql", "events", "redis") and len(names) == 3:
        suite, subject, case = names
        suite = "buses beyond the suite" if suite == "bus" else suite
    else:
        return None
    if subject not in SUBJECTS:
        return None
    subject = SUBJECTS[subject]
    if suite == "buses" and subject == "memory, real time":
        subject = "memory durable, real time"
    return suite, subject, case


def read(paths):
    """The results by suite, then by case, then by subject."""
    suites, binary = {}, ""
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if found := BINARY.search(line):
                    binary = found.group(1)
                elif found := RESULT.match(line):
                    if where := place(binary, found.group(1)):
                        suite, subject, case = where
                        suites.setdefault(suite, {}).setdefault(case, {})[subject] = found.group(2)
    return suites


def table(cases):
    order = list(SUBJECTS.values()) + ["memory durable, real time"]
    subjects = sorted({subject for results in cases.values() for subject in results}, key=order.index)
    yield "| case | " + " | ".join(subjects) + " |"
    yield "|---|" + "---|" * len(subjects)
    for case in sorted(cases):
        results = (cases[case].get(subject, "") for subject in subjects)
        yield f"| {case.replace('_', ' ')} | " + " | ".join(results) + " |"


def main():
    print("# Results of the suites\n")
    print("`scripts/conformance.sh` writes this page. A case that needs a broker, or a capability, asserts that a bus without one")
    print("says so. Case 13, that settling twice does not compile, is a doc test of `Delivery`. Cases 39 and 44 to 50 are of an outbox, an inbox")
    print("and an audit log, which are in a database: their columns are databases, and buses that a database publishes to. Records of keys in a")
    print("Redis server are in the column `Redis`. An empty place is a case of one bus alone, whose limits or forms others do not have.")
    for suite, cases in sorted(read(sys.argv[1:]).items(), key=lambda item: (item[0] not in TITLES, item[0])):
        print(f"\n## {TITLES.get(suite, suite.capitalize())}\n")
        print("\n".join(table(cases)))


main()
