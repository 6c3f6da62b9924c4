"""What schemathesis sends, as a JSON library writes it."""

import schemathesis


def whole(value):
    """Writes 3.0 as 3: JSON Schema takes them for the same, and the server reads no integer from the first."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    case.body = whole(case.body)
