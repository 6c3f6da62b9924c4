"""Corrects what schemathesis sends where it is not what its own reading of the document calls for."""

import schemathesis
from schemathesis.core.parameters import ParameterLocation

# Fields whose form needs characters that the coverage phase never puts into a header: it leaves them empty.
FORMED = ("Idempotency-Key", "Octollm-Budget")


@schemathesis.hook
def before_call(context, case, kwargs):
    # schemathesis judges a case by what it holds only after an assignment.
    case.body = case.body
    head = case.meta and case.meta.components.get(ParameterLocation.HEADER)
    undeclared = case.method.upper() != case.operation.method.upper()
    if head and (head.mode.is_positive or undeclared):
        for name in FORMED:
            if case.headers.get(name) == "":
                del case.headers[name]
